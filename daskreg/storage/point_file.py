"""Points and what else is in their file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable

Points = NDArray[np.float64]


@dataclass(frozen=True)
class PointFile:
    """Points (N, 3), z, y, x, and what else was in their file.

    order: of the components in the file;  header, rows: of a table, columns: where its x, y and z are, separator: of its cells,
    where its ending does not say it;  mesh: of a mesh file
    """

    points: Points
    order: str = "xyz"
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    columns: tuple[int, int, int] = (0, 1, 2)
    separator: str = ","
    mesh: Any = None

    def with_points(self, points: Points) -> PointFile:
        """A copy with other points."""
        return replace(self, points=points)


def require_finite(path: str, points: Points) -> Points:
    """The points in C order. Raises Unreadable naming the first that is not finite."""
    wrong = ~np.isfinite(points).all(axis=1)
    if wrong.any():
        raise Unreadable(f"{path}: point {int(np.flatnonzero(wrong)[0])} is not finite; remove it.")
    return np.ascontiguousarray(points)

"""Points and what else is in their file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable

Points = NDArray[np.float64]
Cells = TypeVar("Cells", bound=Sequence[str])
NAMED = 5  # points that a message names


@dataclass(frozen=True)
class PointFile:
    """Points (N, 3), z, y, x, and what else was in their file.

    order: of the components in the file;  header, rows: of a table, columns: where its x, y and z are, separator: of its cells,
    where its ending does not say it, lines: of the file, the first is 1, where its rows are;  mesh: of a mesh file
    """

    points: Points
    order: str = "xyz"
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    columns: tuple[int, int, int] = (0, 1, 2)
    separator: str = ","
    mesh: Any = None
    lines: tuple[int, ...] = ()

    def with_points(self, points: Points) -> PointFile:
        """A copy with other points."""
        return replace(self, points=points)


def require_finite(path: str, points: Points) -> Points:
    """The points in C order. Raises Unreadable naming the first that is not finite."""
    wrong = ~np.isfinite(points).all(axis=1)
    if wrong.any():
        raise Unreadable(f"{path}: point {int(np.flatnonzero(wrong)[0])} is not finite; remove it.")
    return np.ascontiguousarray(points)


def named_points(chosen: NDArray[np.bool_], lines: Sequence[int] = ()) -> str:
    """Which points of (N,) are chosen, the first few by name: their lines in a table, ``rows 2, 5``, or indices, ``point 3``."""
    found = np.flatnonzero(chosen)
    where = [str(lines[k] if lines else k) for k in found[:NAMED]]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{'row' if lines else 'point'}{'s' * (len(found) > 1)} {', '.join(where)}{more}"


def commented_header(
    lines: Sequence[tuple[int, str]],
    rows: Sequence[tuple[int, Cells]],
    split: Callable[[str], Cells],
    has_names: Callable[[str], bool],
) -> list[tuple[int, Cells]]:
    """The header that stands behind '#' before the first row, with as many names as that has cells; none where none does.

    lines: all of a table, with their numbers;  rows: those without comments
    """
    first, cells = rows[0]
    before = [(n, line.lstrip("# ")) for n, line in lines if n < first and line.startswith("#")]
    found = [(n, split(text)) for n, text in before if has_names(text)]
    return [row for row in found if len(row[1]) == len(cells)][-1:]

"""A transform as it is stored, before it becomes a ``Transform``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid


@dataclass(frozen=True)
class StoredLink:
    """One link ``W(x + d(x))``: affine, W, (4, 4), world, LPS, z, y, x, 1; field, d, (3, Z, Y, X) on ``grid``, world units,
    components z, y, x: anything that slices to an array, None where there is none.
    """

    affine: NDArray[np.float64]
    grid: Grid | None = None
    field: Any = None


@dataclass(frozen=True)
class TransformRecord:
    """Links in the order of application, the unit of the world (None: unknown), and the grids of both images where known.

    format: how it is stored, by default the name of its format;  metadata: what daskreg keeps with it;
    images: paths below it of the fixed and the moving image, for a scene between images
    """

    links: tuple[StoredLink, ...]
    unit: str | None
    fixed: Grid | None = None
    moving: Grid | None = None
    format: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str | None, str | None] = (None, None)

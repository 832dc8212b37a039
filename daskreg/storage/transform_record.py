"""A transform as it is stored, before it becomes a ``Transform``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.grid import Grid

SINGULAR = 1e-9  # ratio of an affine's least to its largest stretch


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


def require_map(name: str, link: StoredLink) -> None:
    """Raises Unreadable unless a link is a map of space: finite, affine, not singular, with vectors for the voxels of its "
    "grid.
    """
    matrix = np.asarray(link.affine)
    if matrix.shape != (4, 4) or matrix.dtype.kind not in "iuf" or not np.isfinite(matrix).all():
        raise Unreadable(f"{name} holds an affine {_short(matrix)}; (4, 4) finite numbers were expected.")
    if not np.allclose(matrix[3], [0, 0, 0, 1], rtol=0, atol=1e-12):
        raise Unreadable(f"{name} holds an affine whose last row is {matrix[3].tolist()}; 0, 0, 0, 1 was expected.")
    stretches = np.linalg.svd(np.asarray(matrix[:3, :3], float), compute_uv=False)
    if not stretches[2] > SINGULAR * stretches[0]:
        raise Unreadable(f"{name} holds a singular affine, which flattens space: {_short(matrix[:3, :3])}.")
    if link.field is not None and (link.grid is None or tuple(link.field.shape) != (3, *link.grid.shape)):
        expected = "a grid" if link.grid is None else f"(3, Z, Y, X) = {(3, *link.grid.shape)}"
        raise Unreadable(f"{name} holds a displacement of shape {tuple(link.field.shape)}; {expected} was expected.")


def _short(matrix: NDArray[Any]) -> str:
    return str(np.round(matrix, 4).tolist() if matrix.dtype.kind in "iuf" else matrix.shape)[:200]

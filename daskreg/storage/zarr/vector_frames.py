"""Displacements along the world's axes (LPS) and along their own grid's, as NGFF stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.grid import IDENTITY, Grid

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.kernels import vectors
else:
    da = DeferredModule("dask.array")
    vectors = DeferredModule("daskreg.kernels.vectors")

Matrix = NDArray[np.float64]


def vector_frame(grid: Grid) -> Matrix | None:
    """The direction (3, 3), along the world's axes from along the grid's; None where they are the same."""
    return None if grid.direction == IDENTITY else np.asarray(grid.direction, np.float64)


def to_grid_axes(field: NDArray[Any], frame: Matrix | None) -> NDArray[Any]:
    """Vectors along the world's axes, as they are stored. frame: see ``vector_frame``."""
    return field if frame is None else vectors.apply_matrix(np.asarray(np.linalg.inv(frame), np.float64), field)


def to_world_axes(field: da.Array, frame: Matrix | None) -> da.Array:
    """A stored field along the world's axes, lazily. frame: see ``vector_frame``."""
    if frame is None:
        return field
    whole = field.rechunk({0: 3})
    lazy: da.Array = da.map_blocks(
        lambda part: vectors.apply_matrix(frame, part), whole, dtype=np.float32, meta=np.empty((0,) * 4, np.float32)
    )
    return lazy

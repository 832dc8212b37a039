"""Displacements along the world's axes (LPS) and along their own grid's, as NGFF stores them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.grid import IDENTITY, Grid
from daskreg.kernels.vectors import apply_matrix

Matrix = NDArray[np.float64]


def turn_of(grid: Grid) -> Matrix | None:
    """The direction (3, 3), along the world's axes from along the grid's; None where they are the same."""
    return None if grid.direction == IDENTITY else np.asarray(grid.direction, np.float64)


def along_grid(field: NDArray[Any], turn: Matrix | None) -> NDArray[Any]:
    """Vectors along the world's axes, as they are stored. turn: see ``turn_of``."""
    return field if turn is None else apply_matrix(np.asarray(np.linalg.inv(turn), np.float64), field)


def along_world(field: da.Array, turn: Matrix | None) -> da.Array:
    """A stored field along the world's axes, lazily. turn: see ``turn_of``."""
    if turn is None:
        return field
    whole = field.rechunk({0: 3})
    lazy: da.Array = da.map_blocks(
        lambda part: apply_matrix(turn, part), whole, dtype=np.float32, meta=np.empty((0,) * 4, np.float32)
    )
    return lazy

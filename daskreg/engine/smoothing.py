"""Separable smoothing of a level's vector fields, with the tables of the level made once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.halo import Block
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.smoothing.cpu import (
    gaussian_norms,
    gaussian_radius,
    gaussian_shares,
    gaussian_table,
    gaussian_weights,
    smooth_x,
    smooth_y,
    smooth_z,
)

Array = NDArray[np.float32]


class Smoother:
    """A Gaussian of ``sigma`` voxels on a block's fields; sigma 0 copies.

    tables, norms, ones, shares: by axis z, y, x, on the block's device, z for the planes held: the weights of every voxel; 1
    over the sum of the weights that fall inside of the grid; the same for a filter of one tap; the sum of the squares of the
    weights, which sum to 1.
    """

    def __init__(self, block: Block, sigma: float) -> None:
        self.reach: int = gaussian_radius(sigma)
        self.weights: tuple[np.float32, ...] = gaussian_weights(sigma)
        held, put = slice(block.held.start, block.held.stop), block.device.put
        tables = [gaussian_table(n, sigma) for n in block.shape]
        self.tables: list[Any] = [put(t) for t in (tables[0][held], *tables[1:])]
        norms, ones = ([gaussian_norms(n, s) for n in block.shape] for s in (sigma, 0))
        self.norms: list[Any] = [put(t) for t in (norms[0][held], *norms[1:])]
        self.ones: list[Any] = [put(t) for t in (ones[0][held], *ones[1:])]
        shares = [gaussian_shares(n, sigma) for n in block.shape]
        self.shares: list[Any] = [put(t) for t in (shares[0][held], *shares[1:])]

    def along_zy(self, box: Shape, field: Array, scratch: Array) -> None:
        """Smooth the planes of ``box`` in place along z and y; reads ``reach`` planes around them, overwrites ``scratch``."""
        if self.reach:
            smooth_z(box, self.tables[0], self.weights, field, scratch)
            smooth_y(box, self.tables[1], self.weights, scratch, field)

    def into(self, box: Shape, field: Array, scratch: Array, smoothed: Array) -> None:
        """``smoothed`` receives the whole Gaussian of ``field``; both ``field`` and ``scratch`` are overwritten."""
        self.along_zy(box, field, scratch)
        smooth_x(box, self.reach, self.tables[2], self.weights, field, smoothed)

"""Separable smoothing of the loop's vector fields, with the tables of a level made once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.halo import Block
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.smoothing.cpu import gaussian_table, gaussian_weights, radius_of, smooth_x, smooth_y, smooth_z

Array = NDArray[np.float32]


class Smoother:
    """A Gaussian of ``sigma`` voxels on a block's fields; sigma 0 copies."""

    def __init__(self, block: Block, sigma: float) -> None:
        self.reach = radius_of(sigma)
        self.weights = gaussian_weights(sigma)
        self.tables = [gaussian_table(n, sigma) for n in block.shape]
        self.tables[0] = self.tables[0][block.held.start : block.held.stop]
        self.tables = [block.device.put(t) for t in self.tables]

    def along_zy(self, box: Shape, field: Array, scratch: Array) -> None:
        """Smooth the planes of ``box`` in place along z and y; reads ``reach`` planes around them, overwrites ``scratch``."""
        if self.reach:
            smooth_z(box, self.tables[0], self.weights, field, scratch)
            smooth_y(box, self.tables[1], self.weights, scratch, field)

    def into(self, box: Shape, field: Array, scratch: Array, smoothed: Array) -> None:
        """``smoothed`` receives the whole Gaussian of ``field``; both ``field`` and ``scratch`` are overwritten."""
        self.along_zy(box, field, scratch)
        smooth_x(box, self.reach, self.tables[2], self.weights, field, smoothed)

"""Separable smoothing of the loop's vector fields, with the tables of a level made once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.gaussian import gaussian_table, gaussian_weights, radius_of, smooth_x, smooth_y, smooth_z

Array = NDArray[np.float32]


class Smoother:
    """A Gaussian of ``sigma`` voxels on fields of one shape; sigma 0 copies."""

    def __init__(self, shape: tuple[int, int, int], sigma: float) -> None:
        self.shape, self.reach = shape, radius_of(sigma)
        self.weights = gaussian_weights(sigma)
        self.tables = [gaussian_table(n, sigma) for n in shape]

    def along_zy(self, field: Array, scratch: Array) -> None:
        """Smooth ``field`` in place along z and y; ``scratch`` is overwritten."""
        if self.reach:
            smooth_z(self.shape, 0, self.tables[0], self.weights, field, scratch)
            smooth_y(self.shape, self.tables[1], self.weights, scratch, field)

    def into(self, field: Array, scratch: Array, smoothed: Array) -> None:
        """``smoothed`` receives the whole Gaussian of ``field``; both ``field`` and ``scratch`` are overwritten."""
        self.along_zy(field, scratch)
        smooth_x(self.shape, self.reach, self.tables[2], self.weights, field, smoothed)

"""Local normalised cross-correlation: ``C = -sum w cc / N`` (method, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.lncc import march_factors, march_slope
from daskreg.similarity.base import Similarity, Volume


class LocalCorrelation(Similarity):
    """Windows of (2 radius + 1)^3 voxels; the gradient is exact, or that of the centre window alone."""

    steep = 0.1

    def __init__(self, radius: int, epsilon: float = 1e-12, flat: float = 0.0, exact: bool = True) -> None:
        self.radius, self.exact = radius, exact
        self.epsilon, self.flat = np.float32(epsilon), np.float32(flat**2)
        self.reach = 2 * radius if exact else radius
        self._ones = (np.float32(1),) * (2 * radius + 1)

    def partial(self, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """Rows of (w cc, w); ``fields`` receives w D, w K, w (K mu_M - D mu_F)."""
        rows = np.zeros((2, *moved.shape[:2]), np.float32)
        march_factors(moved.shape, rows, 0, self._ones, self.epsilon, self.flat, fixed, weight, moved, fields)
        return rows

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mean squared correlation."""
        return -float(total[0]) / max(float(total[1]), 1e-30), float(total[1])

    def finish(self, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> None:
        """Window sums of ``fields``, or their centre."""
        ones = self._ones if self.exact else self._ones[:1]
        march_slope(moved.shape, 0, ones, fields, fixed, weight, moved)

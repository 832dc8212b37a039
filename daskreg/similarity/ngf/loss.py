"""Normalised gradient fields: ``C = -sum w <n(F), n(M)>^2 / N`` with ``n(I) = grad I / sqrt(|grad I|^2 + eta^2)``.

E. Haber, J. Modersitzki: Intensity gradient based registration and fusion of multi-modal images. MICCAI 2006, equations 5 and 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import box
from daskreg.similarity.base import Samples, Similarity, ratio
from daskreg.similarity.ngf.cpu import ngf_factors, ngf_slope


class NormalisedGradients(Similarity):
    """Kernels run where the arrays are; N is the sum of the weights of voxels whose differences are known."""

    reach = 2

    def __init__(self, eta: float) -> None:
        self.eta_squared = np.float32(eta**2)

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w <n(F), n(M)>^2, w); ``scratch`` receives the derivatives on the own planes and on their neighbours."""
        first, planes, ny, nx = box(s.box)
        if not planes:
            return np.zeros((2, 0, ny), np.float32)
        start, stop = max(0, first - 1), min(s.moved.shape[0], first + planes + 1)
        rows = ngf_factors((range(start, stop), ny, nx), self.eta_squared, s.fixed, s.weight, s.moved, s.scratch)
        own: NDArray[np.generic] = rows[:, first - start : first - start + planes]
        return own

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mean square of the cosine between both normalised gradients."""
        mean, n = ratio(total)
        return -mean, n

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """The adjoint of the differences."""
        ngf_slope(s.box, s.scratch, s.moved)

"""Normalised gradient fields: ``C = -sum w <n(F), n(M)>^2 / N`` with ``n(I) = grad I / sqrt(|grad I|^2 + eta^2)``.

E. Haber, J. Modersitzki: Intensity gradient based registration and fusion of multi-modal images. MICCAI 2006, equations 5 and 7.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import box
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import LossContext, Samples, Similarity, ratio
from daskreg.similarity.ngf.cpu import ngf_factors, ngf_slope, ngf_smoothed_factors, ngf_smoothed_slope
from daskreg.similarity.ngf.cuda import count_factors

Terms = tuple[np.float32, np.float32]  # factors of <n(F), n(M)>^2 and of -|n(M)|^4
PRODUCT, MINUS_SQUARE = (np.float32(1), np.float32(0)), (np.float32(0), np.float32(1))


class NormalisedGradients(Similarity):
    """N is the sum of the weights of voxels whose differences are known.

    Since ``match`` was called ``C = -sum w (2 <n(F), n(M)>^2 - gain |n(M)|^4) / N``.
    """

    matched = matched_levels = True
    reach = 2
    loss_sign = -1
    differences = True
    separable = True

    def __init__(self, eta: float, smoothed: bool = False) -> None:
        self.eta_squared, self.smoothed = np.float32(eta**2), smoothed
        self.write, self.pull_back = (ngf_smoothed_factors, ngf_smoothed_slope) if smoothed else (ngf_factors, ngf_slope)
        self.terms = PRODUCT

    def moments(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w <n(F), n(M)>^2, w, -w |n(M)|^4, w)."""
        return np.concatenate([host(self._partial(s, terms)) for terms in (PRODUCT, MINUS_SQUARE)])

    def match(self, total: NDArray[np.generic]) -> None:
        """Find the gain with which ``gain n(M) n(M)^T`` is nearest to ``n(F) n(F)^T``, over the voxels that are compared."""
        product, _, minus_square, _ = (float(v) for v in total)
        gain = product / -minus_square if minus_square < 0 else 0.0
        self.terms = np.float32(2), np.float32(gain)

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w <n(F), n(M)>^2, w); ``scratch`` receives the derivatives on the own planes and on their neighbours."""
        return self._partial(s, self.terms)

    def _partial(self, s: Samples, terms: Terms) -> NDArray[np.generic]:
        own, around = planes(s)
        _, ny, nx = s.moved.shape
        rows = self.write((around, ny, nx), 1, self.eta_squared, *terms, s.fixed, s.weight, s.moved, s.scratch)
        mine: NDArray[np.generic] = rows[:, own.start - around.start : own.stop - around.start]
        return mine

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mean square of the cosine between both normalised gradients."""
        mean, n = ratio(total)
        return -mean, n

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """The adjoint of the differences."""
        self.pull_back(s.box, 2, s.scratch, s.moved)


class NormalisedGradientsOnGpu(NormalisedGradients):
    """The same with sums that are counted on the device."""

    asynchronous = True

    def _partial(self, s: Samples, terms: Terms) -> NDArray[np.generic]:
        """Counts of (w <n(F), n(M)>^2, w)."""
        totals = module_of(s.moved).zeros(2, np.int64)
        self._count(s, terms, totals)
        return host(totals)

    def evaluate(self, on: LossContext) -> None:
        """See ``Similarity.evaluate``."""
        on.sample()
        on.run("gradient fields", functools.partial(self._compare, on))
        on.pull_back(on.samples.moved)

    def _compare(self, on: LossContext) -> None:
        self._count(on.samples, self.terms, on.totals)
        self.finish(on.samples, np.zeros(2))

    def _count(self, s: Samples, terms: Terms, totals: Any) -> None:
        own, around = planes(s)
        count_factors(around, own, self.smoothed, (self.eta_squared, *terms), s.fixed, s.weight, s.moved, s.scratch, totals)


def planes(s: Samples) -> tuple[range, range]:
    """The own planes of the arrays; these and their neighbours, whose differences read own voxels."""
    first, count, _, _ = box(s.box)
    own = range(first, first + count)
    return own, range(max(0, first - 1), min(s.moved.shape[0], own.stop + 1)) if count else own

"""Local normalised cross-correlation: ``C = -sum w cc / N`` (method, section 3)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import LossContext, Samples, Similarity, ratio
from daskreg.similarity.lncc import LNCC
from daskreg.similarity.lncc.cpu import factor_rows, gradient_rows
from daskreg.similarity.lncc.cuda.launch import compute_factors, compute_gradient

Box = tuple[int, int, int, int]


class LocalCorrelation(Similarity):
    """Windows of (2 radius + 1)^3 voxels; the gradient is exact, or that of the centre window alone."""

    loss_sign = -1
    separable = True

    def __init__(self, parameters: LNCC) -> None:
        self.radius, self.exact, self.reach = parameters.radius, parameters.exact, parameters.reach
        self.epsilon = np.float32(parameters.epsilon)
        noise = np.float32(parameters.noise**2)
        noise = noise if noise >= np.finfo(np.float32).tiny else np.float32(0)  # see ``factors``
        self.variances = np.float32(parameters.minimum_contrast**2), noise
        self._ones = (np.float32(1),) * (2 * self.radius + 1)

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w cc, w); ``scratch`` receives w D, w K, w (K mu_M - D mu_F)."""
        first, planes, ny, _ = n = self.windows(s)
        rows = np.zeros((2, planes, ny), np.float32)
        factor_rows(n, rows, self._ones, self.epsilon, self.variances, s.fixed, s.weight, s.moved, s.scratch)
        own = whole_box(s.box)
        return rows[:, own[0] - first : own[0] - first + own[1]]

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Minus the mean squared correlation."""
        mean, n = ratio(total)
        return -mean, n

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """Window sums of ``scratch``, or their centre."""
        ones = self._ones if self.exact else self._ones[:1]
        gradient_rows(whole_box(s.box), ones, s.scratch, s.fixed, s.weight, s.moved)

    def windows(self, s: Samples) -> Box:
        """The planes whose windows are needed: for the exact gradient also those that overlap the box from outside."""
        first, planes, ny, nx = whole_box(s.box)
        more = self.radius if self.exact and planes else 0
        start, stop = max(0, first - more), min(s.moved.shape[0], first + planes + more)
        return start, stop - start, ny, nx


class LocalCorrelationOnGpu(LocalCorrelation):
    """The same with sums that are counted, in kernels whose threads share planes."""

    asynchronous = True

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Counts of (w cc, w)."""
        totals = module_of(s.moved).zeros(2, np.int64)
        self._factors(self.windows(s), s, s.scratch, totals, _planes(whole_box(s.box)))
        return host(totals)

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """As on a CPU; the centre window's gradient is computed once more, from ``moved`` as it still is."""
        own = whole_box(s.box)
        if self.exact:
            self._sum_windows(own, s, s.scratch)
        else:
            target, planes = s.scratch[0], slice(own[0], own[0] + own[1])
            self._factors(own, s, target, module_of(s.moved).zeros(2, np.int64), (0, 0))
            s.moved[planes] = target[planes]

    def evaluate(self, on: LossContext) -> None:
        """See ``Similarity.evaluate``. The centre window's gradient goes into ``slope``: neighbours still read ``moved``."""
        on.sample()
        on.run("windows", functools.partial(self._exact if self.exact else self._centered, on))
        on.pull_back(on.samples.moved if self.exact else on.slope)

    def _exact(self, on: LossContext) -> None:
        s, own = on.samples, whole_box(on.samples.box)
        self._factors(self.windows(s), s, s.scratch, on.totals, _planes(own))
        self._sum_windows(own, s, s.scratch)

    def _centered(self, on: LossContext) -> None:
        own = whole_box(on.samples.box)
        self._factors(own, on.samples, on.slope, on.totals, _planes(own))

    def _factors(self, n: Box, s: Samples, out: Any, totals: Any, counted: tuple[int, int]) -> None:
        """Factors of all windows of a box, or dC/dmoved of the centre window; totals of the planes from, to that are counted."""
        compute_factors(n, s.origin, counted, self.radius, self.epsilon, self.variances, s.fixed, s.weight, s.moved, out, totals)

    def _sum_windows(self, own: Box, s: Samples, factors: Any) -> None:
        compute_gradient(own, s.origin, self.radius, factors, s.fixed, s.weight, s.moved)


def _planes(box: Box) -> tuple[int, int]:
    """First plane of a box, and the one behind it."""
    return box[0], box[0] + box[1]

"""Mean squared error: ``C = sum w (gain moved + offset - fixed)^2 / N`` (method, section 3)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import LossContext, Samples, Sampling, Similarity, ratio
from daskreg.similarity.mse.cpu import intensity_moments, squared_difference
from daskreg.similarity.mse.cuda import compare
from daskreg.similarity.mse.cuda import sample_and_compare as sample_and_compare


class MeanSquaredError(Similarity):
    """One pass gives both value and gradient. In linear stages the moving image counts as ``gain M + offset``, see ``match``."""

    matched = True
    separable = True

    def __init__(self) -> None:
        self.gain, self.offset = np.float32(1), np.float32(0)

    def moments(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w, w F, w M, w F^2, w M^2)."""
        rows: NDArray[np.generic] = intensity_moments(s.box, s.fixed, s.weight, s.moved)
        return rows

    def match(self, total: NDArray[np.generic]) -> None:
        """Give the moving image the mean and the standard deviation of the fixed one, over the voxels that are compared."""
        n, f, m, ff, mm = (float(v) for v in total)
        spread = (ff - f * f / n, mm - m * m / n) if n > 0 else (0.0, 0.0)
        gain = float(np.sqrt(spread[0] / spread[1])) if min(spread) > 0 else 1.0
        self.gain, self.offset = np.float32(gain), np.float32((f - gain * m) / n if n > 0 else 0.0)

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w e^2, w); ``moved`` already becomes the gradient."""
        rows: NDArray[np.generic] = squared_difference(s.box, self.gain, self.offset, s.fixed, s.weight, s.moved)
        return rows

    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Sum of squares over sum of weights."""
        return ratio(total)

    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """Nothing is left to do."""


class MeanSquaredErrorOnGpu(MeanSquaredError):
    """Sums are counted; where the moving image has no mask, sampling, comparing and the gradient are one pass."""

    asynchronous = True
    loss_sign = 1

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Counts of (w e^2, w); ``moved`` already becomes the gradient."""
        totals = module_of(s.moved).zeros(2, np.int64)
        compare(s.box, s.fixed, s.weight, s.moved, self._relation(s), totals)
        return host(totals)

    def evaluate(self, on: LossContext) -> None:
        """See ``Similarity.evaluate``."""
        relation = self._relation(on.samples)
        compare = functools.partial(_compare, on, relation)
        if not on.masked:
            on.sample_and_pull_back(functools.partial(_fused, on), compare)
            return
        on.sample()
        on.run("difference", functools.partial(compare, on.samples.box))
        on.pull_back(on.samples.moved)

    def _relation(self, s: Samples) -> Any:
        """(gain, offset) where the images are; the same array while they are the same, for graphs that read it."""
        if not hasattr(self, "_kept"):
            self._kept = module_of(s.moved).asarray([self.gain, self.offset], np.float32)
        return self._kept

    def match(self, total: NDArray[np.generic]) -> None:
        """See ``MeanSquaredError``."""
        super().match(total)
        self.__dict__.pop("_kept", None)


def _compare(on: LossContext, relation: Any, box: Shape) -> None:
    compare(box, on.samples.fixed, on.samples.weight, on.samples.moved, relation, on.totals)


def _fused(on: LossContext, box: Shape, sampling: Sampling, gradient: Any) -> None:
    sample_and_compare(box, *sampling, on.samples.fixed, on.samples.weight, gradient, on.totals)

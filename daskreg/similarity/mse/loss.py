"""Mean squared error: ``C = sum w (moved - fixed)^2 / N`` (method, section 3)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.device import host, module_of
from daskreg.similarity.base import LossContext, Samples, Similarity, ratio
from daskreg.similarity.mse.cpu import squared_difference
from daskreg.similarity.mse.cuda import compare
from daskreg.similarity.mse.cuda import sample_and_compare as sample_and_compare

# first plane, A and t, S, displacement, first plane of the image, planes of the whole image, image
Sampling = tuple[int, Any, Any, Any, int, int, Any]


class MeanSquaredError(Similarity):
    """One pass gives both value and gradient."""

    def partial(self, s: Samples) -> NDArray[np.generic]:
        """Rows of (w e^2, w); ``moved`` already becomes the gradient."""
        rows: NDArray[np.generic] = squared_difference(s.box, s.fixed, s.weight, s.moved)
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
        compare(s.box, s.fixed, s.weight, s.moved, totals)
        return host(totals)

    def evaluate(self, on: LossContext) -> None:
        """See ``Similarity.evaluate``."""
        compare = functools.partial(_compare, on)
        if not on.masked:
            on.sample_and_pull_back(functools.partial(_fused, on), compare)
            return
        on.sample()
        on.run("difference", functools.partial(compare, on.samples.box))
        on.pull_back(on.samples.moved)


def _compare(on: LossContext, box: Shape) -> None:
    compare(box, on.samples.fixed, on.samples.weight, on.samples.moved, on.totals)


def _fused(on: LossContext, box: Shape, sampling: Sampling, gradient: Any) -> None:
    sample_and_compare(box, *sampling, on.samples.fixed, on.samples.weight, gradient, on.totals)

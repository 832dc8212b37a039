"""Gradient descent with momentum: a running mean of the gradient, whose step shrinks with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int64
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import voxelwise
from daskreg.optimizers.base import Optimizer, State, Step

index = int64  # replaced by the launcher
ZERO, ONE = float32(0), float32(1)


@voxelwise(sums=1, maxima=True)
def momentum_step(z: Any, y: Any, x: Any, coefficients: Any, clock: Any, mean: Any, d: Any) -> Any:
    """Update the mean by the gradient in ``d`` and replace that by ``-mean^ / scale``; row maxima of |d|^2.

    coefficients: (T, 2) float32, decay and bias correction over the gradient's scale;  clock: (1,) int32, which row counts;
    mean, d: (3, Z, Y, X) float32
    """
    t = index(clock[index(0)])
    decay, rate, length = coefficients[t, index(0)], coefficients[t, index(1)], ZERO
    for k in range(3):
        c = index(k)
        value = decay * mean[c, z, y, x] + (ONE - decay) * d[c, z, y, x]
        step = -(rate * value)
        mean[c, z, y, x], d[c, z, y, x] = value, step
        length += step * step
    return (length,)


@voxelwise()
def momentum_direction(z: Any, y: Any, x: Any, coefficients: Any, clock: Any, mean: Any, d: Any) -> None:
    """The direction that ``momentum_step`` left. Arguments as there."""
    rate = coefficients[index(clock[index(0)]), index(1)]
    for k in range(3):
        d[index(k), z, y, x] = -(rate * mean[index(k), z, y, x])


class Momentum(Optimizer):
    """State ``mean``, float32."""

    restores_direction = True
    fields = ("mean",)

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def init(self, zeros: Callable[..., Any]) -> State:
        """At rest."""
        return {"mean": zeros()}

    def coefficients(self, t: int, gradient_scale: float) -> NDArray[np.float32]:
        """The decay; the correction of the mean's bias towards 0, over the scale."""
        return np.array([self.decay, 1 / ((1 - self.decay**t) * gradient_scale)], np.float32)

    def step(self, s: Step) -> None:
        """The gradient is smoothed into a buffer, which the direction replaces."""
        if not s.idle:
            d = s.smoothed()
            rows = momentum_step(s.box, s.coefficients, s.clock, s.state["mean"], d)
            s.longest[0] = rows.max()

    def restore_direction(self, s: Step) -> None:
        """From the mean."""
        momentum_direction(s.box, s.coefficients, s.clock, s.state["mean"], s.direction)

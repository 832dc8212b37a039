"""The last axis of the Gaussian of the gradient and Adam's update in one pass."""

import math
from collections.abc import Callable
from typing import Any

from numba import float32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.smoothing.cpu import filter_x

index = int64  # replaced by the launcher
ONE, TINY = float32(1), float32(1e-30)


@formula
def update_moment(beta, old, new):
    """Running mean with the decay beta."""
    return beta * old + (ONE - beta) * new


@formula
def significance(first, second, chance):
    """How much of a step is more than chance, 0 to 1: ``1 - chance second / first^2``, its positive part; 1 without chance.

    first: m^;  second: v^;  chance: of first^2 / second where the gradients of successive iterations are independent
    """
    return ONE - min(ONE, chance * second / max(first * first, TINY))


@voxelwise(sums=1, maxima=True, border=True)
def adam(z, y, x, inside, reach, table, weights, rates, g, m, v, d):
    """Smooth g along x, update m and v in place, write d; row maxima of |d|^2 (method, section 5).

    ``d = -m^ / (sqrt(v^) + eps) significance(m^, v^)``;  reach, table, weights: as in ``smooth_x``;
    rates: (6,) float32 beta1, beta2, 1/(1 - beta1^t), 1/(1 - beta2^t), eps, chance;  g, m, v, d: (3, Z, Y, X) float32
    """
    length = float32(0)
    for k in range(3):
        c = index(k)
        value = filter_x(c, z, y, x, inside, reach, table, weights, g)
        first = update_moment(rates[0], m[c, z, y, x], value)
        second = update_moment(rates[1], v[c, z, y, x], value * value)
        m[c, z, y, x], v[c, z, y, x] = first, second
        a, b = first * rates[2], second * rates[3]
        step = -a / (math.sqrt(b) + rates[4]) * significance(a, b, rates[5])
        d[c, z, y, x] = step
        length += step * step
    return (length,)


@formula
def direction_of_moments(m, v, c1, c2, eps, chance):
    """A component of Adam's direction, with the operations of ``adam`` in their order."""
    a, b = m * c1, v * c2
    return -a / (math.sqrt(b) + eps) * significance(a, b, chance)


@direction_of_moments.on_cuda
def _direction_on_cuda() -> Callable[..., Any]:
    from daskreg.kernels.adam.step import restored_direction

    return restored_direction


@voxelwise()
def adam_direction(z, y, x, coefficients, clock, m, v, d):
    """The direction that ``adam`` left, from the moments after it.

    coefficients: (T, 6) float32, rows as ``rates`` of ``adam``;  clock: (1,) int32, which row counts;  m, v, d: (3, Z, Y, X)
    float32
    """
    t = index(clock[index(0)])
    c1, c2 = coefficients[t, index(2)], coefficients[t, index(3)]
    eps, chance = coefficients[t, index(4)], coefficients[t, index(5)]
    for k in range(3):
        c = index(k)
        d[c, z, y, x] = direction_of_moments(m[c, z, y, x], v[c, z, y, x], c1, c2, eps, chance)

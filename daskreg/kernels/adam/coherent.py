"""Adam's step on a CPU where v says how much of the mean gradient within the filter is chance.

The filter of the gradient averages over voxels. v is the running mean of what the squared length of that average would be if the
voxels' gradients were independent with mean 0: the mean of their squared lengths, under the same filter, times the sum of the
squares of its weights there, which is larger at the borders of the grid and where an axis has few voxels. It is one number per
voxel, kept as the first component of v.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import float32, int32, int64, uint32

from daskreg.kernels.adam.cpu import update_moment
from daskreg.kernels.adam.moments import first_moment, pack_word, second_moment
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from daskreg.kernels.smoothing.cpu import clamp, filter_x

index = int64  # replaced by the launcher
ZERO, ONE, TINY, THIRD = float32(0), float32(1), float32(1e-30), float32(1 / 3)


@formula
def coherent_factor(square, chance, eps, coherence):
    """What m^ is multiplied by: ``-max(0, 1 - coherence v^ / |m^|^2) / (|m^| / sqrt(3) + eps)``.

    square: |m^|^2;  chance: v^
    """
    return -(ONE - min(ONE, coherence * chance / max(square, TINY))) / (math.sqrt(square * THIRD) + eps)


@coherent_factor.on_cuda
def _factor_on_cuda() -> Callable[..., Any]:
    from daskreg.kernels.adam.step import fast_factor

    return fast_factor


@formula
def squared_norm(a, b, c):
    """The squared length of a vector."""
    return a * a + b * b + c * c


@squared_norm.on_cuda
def _norm_on_cuda() -> Callable[..., Any]:
    from daskreg.kernels.adam.step import fused_norm

    return fused_norm


# ---------------------------------------------------------------- v, before the gradient is smoothed


@voxelwise()
def squared_length(z, y, x, g, d):
    """Write |g|^2 into the first component of d; g, d: (3, Z, Y, X) float32."""
    d[index(0), z, y, x] = squared_norm(g[index(0), z, y, x], g[index(1), z, y, x], g[index(2), z, y, x])


@voxelwise()
def mean_along_z(z, y, x, table, weights, d):
    """Gaussian along z of the first component of d into the second; table, weights: as in ``smooth_z``."""
    total, reach = ZERO, int32(len(weights) // 2)
    for t in range(len(weights)):
        total += table[z, index(t)] * d[index(0), clamp(int32(z) + int32(t) - reach, d.shape[1]), y, x]
    d[index(1), z, y, x] = total


@voxelwise()
def mean_along_y(z, y, x, table, weights, d):
    """Gaussian along y of the second component of d into the first."""
    total, reach = ZERO, int32(len(weights) // 2)
    for t in range(len(weights)):
        total += table[y, index(t)] * d[index(1), z, clamp(int32(y) + int32(t) - reach, d.shape[2]), x]
    d[index(0), z, y, x] = total


@voxelwise(border=True)
def update_chance(z, y, x, inside, reach, table, weights, of_z, of_y, of_x, rates, d, v):
    """Smooth the first component of d along x and update v by it.

    reach, table, weights: as in ``smooth_x``;  of_z, of_y, of_x: (Z,), (Y,), (X,) float32, ``gaussian_shares``;
    rates: (6,) float32, as in ``coherent_adam``;  d, v: (3, Z, Y, X) float32, the first component of v alone is used
    """
    value = of_z[z] * of_y[y] * of_x[x] * filter_x(index(0), z, y, x, inside, reach, table, weights, d)
    v[index(0), z, y, x] = update_moment(rates[1], v[index(0), z, y, x], value)


@voxelwise(border=True)
def update_packed_chance(z, y, x, inside, reach, table, weights, of_z, of_y, of_x, rates, iteration, first, d, words):
    """``update_chance`` with stochastic rounding; words: (3, Z, Y, X) uint32, v is in those of the first component.

    iteration, and first, the global plane at z = 0: on them rounding depends (ints)
    """
    voxel = ((int(z) + int(first)) * d.shape[2] + int(y)) * d.shape[3] + int(x)
    share, word = of_z[z] * of_y[y] * of_x[x], words[index(0), z, y, x]
    value = share * filter_x(index(0), z, y, x, inside, reach, table, weights, d)
    v, bits = update_moment(rates[1], second_moment(word), value), component_bits(random_bits(uint32(voxel), iteration), 0)
    words[index(0), z, y, x] = pack_word(first_moment(word), v, bits)


# ---------------------------------------------------------------- m and the direction


@formula
def write_direction(z, y, x, a, b, c, chance, rates, d):
    """From m and v of a voxel; rates: the last four of ``coherent_adam``; returns |d|^2."""
    c1, c2, eps, coherence = rates
    a, b, c = a * c1, b * c1, c * c1
    factor = coherent_factor(squared_norm(a, b, c), chance * c2, eps, coherence)
    a, b, c = a * factor, b * factor, c * factor
    d[index(0), z, y, x], d[index(1), z, y, x], d[index(2), z, y, x] = a, b, c
    return squared_norm(a, b, c)


@voxelwise(sums=1, maxima=True, border=True)
def coherent_adam(z, y, x, inside, reach, table, weights, rates, g, m, v, d):
    """Smooth g along x, update m in place, write d; row maxima of |d|^2. v has been updated.

    rates: (6,) float32 beta1, beta2, 1/(1 - beta1^t), 1/(1 - beta2^t), eps, coherence;  others as in ``adam``
    """
    for k in range(3):
        c = index(k)
        value = filter_x(c, z, y, x, inside, reach, table, weights, g)
        m[c, z, y, x] = update_moment(rates[0], m[c, z, y, x], value)
    a, b, c = m[index(0), z, y, x], m[index(1), z, y, x], m[index(2), z, y, x]
    ends = rates[2], rates[3], rates[4], rates[5]
    return (write_direction(z, y, x, a, b, c, v[index(0), z, y, x], ends, d),)


@voxelwise(sums=1, maxima=True, border=True)
def packed_coherent_adam(z, y, x, inside, reach, table, weights, rates, g, words, d):
    """``coherent_adam`` with m in the upper halves of words; the direction follows from the rounded moments."""
    for k in range(3):
        c = index(k)
        value, word = filter_x(c, z, y, x, inside, reach, table, weights, g), words[c, z, y, x]
        m = update_moment(rates[0], first_moment(word), value)
        words[c, z, y, x] = pack_word(m, second_moment(word), uint32(0))
    a, b, c = words[index(0), z, y, x], words[index(1), z, y, x], words[index(2), z, y, x]
    ends = rates[2], rates[3], rates[4], rates[5]
    return (write_direction(z, y, x, first_moment(a), first_moment(b), first_moment(c), second_moment(a), ends, d),)


@voxelwise()
def coherent_direction(z, y, x, coefficients, clock, m, v, d):
    """The direction that ``coherent_adam`` left, from the moments after it.

    coefficients: (T, 6) float32, rows as ``rates`` there;  clock: (1,) int32, which row counts
    """
    t = index(clock[index(0)])
    ends = coefficients[t, index(2)], coefficients[t, index(3)], coefficients[t, index(4)], coefficients[t, index(5)]
    write_direction(z, y, x, m[index(0), z, y, x], m[index(1), z, y, x], m[index(2), z, y, x], v[index(0), z, y, x], ends, d)


@voxelwise()
def packed_coherent_direction(z, y, x, rates, words, d):
    """The direction that ``packed_coherent_adam`` left."""
    a, b, c = words[index(0), z, y, x], words[index(1), z, y, x], words[index(2), z, y, x]
    ends = rates[2], rates[3], rates[4], rates[5]
    write_direction(z, y, x, first_moment(a), first_moment(b), first_moment(c), second_moment(a), ends, d)

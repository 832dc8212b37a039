"""Formulas of Adam's step on a GPU: directions and moments of a voxel."""

from numba import float32

from daskreg.kernels.adam.moments import first_moment, second_moment
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import divide_normal, fma, lerp, sqrt_fast

ZERO, ONE, TINY, THIRD = float32(0), float32(1), float32(1e-30), float32(1 / 3)


@formula
def direction(m, v, c1, c2, eps):
    """A component of Adam's direction."""
    return -divide_normal(m * c1, sqrt_fast(v * c2) + eps)


@formula
def gated_direction(m, v, c1, c2, eps, chance):
    """``direction`` as far as it is more than chance (``kernels.adam.cpu.significance``)."""
    first, second = m * c1, v * c2
    by_chance = min(ONE, divide_normal(chance * second, max(first * first, TINY)))
    return direction(m, v, c1, c2, eps) * (ONE - by_chance)


def restored_direction(m, v, c1, c2, eps, chance):
    """``kernels.adam.cpu.direction_of_moments``; without a chance level these are the bits of ``direction``."""
    return gated_direction(m, v, c1, c2, eps, chance)


@formula
def packed_direction(word, corrections):
    """``direction`` from packed moments; corrections: both bias corrections and epsilon."""
    return direction(first_moment(word), second_moment(word), corrections[0], corrections[1], corrections[2])


@formula
def packed_gated_direction(word, corrections):
    """``gated_direction`` from packed moments; corrections: both bias corrections, epsilon and the chance level."""
    c1, c2, eps, chance = corrections
    return gated_direction(first_moment(word), second_moment(word), c1, c2, eps, chance)


@formula
def plain_rates(rates, t):
    """Row t of the coefficients, which no chance level concerns."""
    return rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4]


@formula
def gated_rates(rates, t):
    """Row t of the coefficients."""
    return rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4], rates[t, 5]


def fused_norm(a, b, c):
    """``kernels.adam.coherent.squared_norm``."""
    return fma(c, c, fma(b, b, a * a))


def fast_factor(square, chance, eps, coherence):
    """``kernels.adam.coherent.coherent_factor``."""
    by_chance = min(ONE, divide_normal(coherence * chance, max(square, TINY)))
    return divide_normal(by_chance - ONE, sqrt_fast(square * THIRD) + eps)


squared_norm_fused, coherent_factor_fast = formula(fused_norm), formula(fast_factor)


@formula
def coherent_direction_of(a, b, c, chance, corrections):
    """Adam's direction from m and v where v is of chance; corrections: both bias corrections, epsilon and coherence."""
    c1, c2, eps, coherence = corrections
    a, b, c = a * c1, b * c1, c * c1
    factor = coherent_factor_fast(squared_norm_fused(a, b, c), chance * c2, eps, coherence)
    return a * factor, b * factor, c * factor


@formula
def packed_coherent_direction_of(w0, w1, w2, corrections):
    """``coherent_direction_of`` from packed moments."""
    return coherent_direction_of(first_moment(w0), first_moment(w1), first_moment(w2), second_moment(w0), corrections)


@formula
def directions(moments, rates):
    """``direction`` of each component; moments: m, then v."""
    m0, m1, m2, v0, v1, v2 = moments
    _, _, c1, c2, eps = rates
    return direction(m0, v0, c1, c2, eps), direction(m1, v1, c1, c2, eps), direction(m2, v2, c1, c2, eps)


@formula
def gated_directions(moments, rates):
    """``gated_direction`` of each component."""
    m0, m1, m2, v0, v1, v2 = moments
    _, _, c1, c2, eps, chance = rates
    first, second = gated_direction(m0, v0, c1, c2, eps, chance), gated_direction(m1, v1, c1, c2, eps, chance)
    return first, second, gated_direction(m2, v2, c1, c2, eps, chance)


@formula
def coherent_directions(moments, rates):
    """``coherent_direction_of`` moments; v is in the first component."""
    return coherent_direction_of(moments[0], moments[1], moments[2], moments[3], rates[2:])


@formula
def update_moments(moments, s0, s1, s2, chance, rates):
    """Moments after a step with a smoothed gradient."""
    m0, m1, m2, v0, v1, v2 = moments
    b1, b2 = rates[0], rates[1]
    v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
    return lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1), v0, v1, v2


@formula
def update_coherent_moments(moments, s0, s1, s2, chance, rates):
    """Those of which v is in the first component, after a gradient of which so much is chance."""
    m0, m1, m2, v, _, _ = moments
    b1, b2 = rates[0], rates[1]
    return lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1), lerp(chance, v, b2), ZERO, ZERO

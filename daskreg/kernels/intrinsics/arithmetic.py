"""Arithmetic with explicit rounding.

A GPU compiler may fuse a multiplication and an addition in one kernel and not in another, so a ring of shards would not give the
bits of a resident image. On a CPU nothing is fused unless requested.
"""

import math

from numba import float32, int32

from daskreg.kernels.compiler.formula import formula, native

ONE, ZERO, TINY = float32(1), float32(0), float32(1e-36)


@native("fmaf_rn")
def fma(a, b, c):
    """A b + c, rounded once on a GPU."""
    return a * b + c


@native("float2int_rd")
def floor_int32(a):
    """The largest integer not above a, as int32."""
    return int32(a // ONE)


@native("fast_fdividef")
def divide_fast(a, b):
    """A / b, on a GPU with an error of at most two units in the last place."""
    return a / b


@native("fast_expf")
def exp_fast(a):
    """The exponential function, on a GPU with a relative error of 2^-22 and a little more for large ``|a|``."""
    return math.exp(a)


@native("float2ll_rn")
def round_int64(a):
    """The integer nearest to a, as int64: sums of integers do not depend on their order."""
    return round(a)


@native("rsqrtf")
def rsqrt(a):
    """1 / sqrt(a), on a GPU with an error of at most two units in the last place."""
    return a ** float32(-0.5)


@formula
def rounded_product(a, b):
    """A b, rounded before anything is added to it; never -0."""
    return fma(a, b, ZERO)


@formula
def lerp(a, b, w):
    """A + w (b - a)."""
    return fma(w, b - a, a)


@formula
def dot3(a, b, c, x, y, z):
    """A x + b y + c z."""
    return fma(c, z, fma(b, y, a * x))


@formula
def sqrt_fast(a):
    """The square root of a, or of 1e-36 where a is smaller."""
    b = max(a, TINY)
    return b * rsqrt(b)

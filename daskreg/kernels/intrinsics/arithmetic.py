"""Operations whose rounding is spelled out.

On a GPU the compiler may fuse a multiplication into an addition, in one kernel this way and in another that way, and a ring of
shards would not give the bits that a resident image gives. A CPU fuses nothing unless it is asked to.
"""

from numba import float32, int32

from daskreg.kernels.compiler.formula import formula, native

ONE, ZERO, TINY = float32(1), float32(0), float32(1e-36)


@native("fmaf_rn")
def fma(a, b, c):
    """A b + c, on a GPU rounded once."""
    return a * b + c


@native("float2int_rd")
def floor_int32(a):
    """The largest whole number not above a, as int32."""
    return int32(a // ONE)


@native("fast_fdividef")
def divide_fast(a, b):
    """A / b, on a GPU to the last bits but two."""
    return a / b


@native("float2ll_rn")
def round_int64(a):
    """The whole number nearest to a, as int64: sums of such do not depend on their order."""
    return round(a)


@native("rsqrtf")
def rsqrt(a):
    """1 / sqrt(a), on a GPU to the last bits but two."""
    return a ** float32(-0.5)


@formula
def rounded_product(a, b):
    """A b, rounded before anything is added to it, and never -0."""
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
    """The square root of a; of 1e-36 where a is less."""
    b = max(a, TINY)
    return b * rsqrt(b)

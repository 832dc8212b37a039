"""Arithmetic with explicit rounding.

A GPU compiler may fuse a multiplication and an addition in one kernel and not in another, so a ring of shards would not give the
bits of a resident image. On a CPU nothing is fused unless requested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32

from daskreg.kernels.compiler.formula import formula, native

ONE, TWO, ZERO, TINY = float32(1), float32(2), float32(0), float32(1e-36)
ROUNDING = float32(1.5 * 2**23)  # the sum with a is in its last bits the integer nearest to a, the even of two; |a| < 2^22


@native("fmaf_rn")
def fma(a, b, c):
    """A b + c, rounded once on a GPU."""
    return a * b + c


@native("float2int_rd")
def floor_int32(a):
    """The largest integer not above a, as int32."""
    return int32(a // ONE)


@formula
def clamp(i, n):
    """The index in 0 .. n - 1 nearest to i; int32, as i and n are."""
    return int32(min(max(i, int32(0)), int32(n - int32(1))))


@native("fast_fdividef")
def divide_fast(a, b):
    """A / b, on a GPU with an error of at most two units in the last place."""
    return a / b


@formula
def exp2_fast(a):
    """2^a, on a GPU with a relative error of 2^-22; numbers below 2^-126 are 0."""
    return TWO**a


@exp2_fast.intrinsic
def _exp2_instruction() -> Callable[..., Any]:
    return _instruction("ex2.approx.ftz.f32 $0, $1;")


@formula
def reciprocal_fast(a):
    """1 / a, on a GPU with an error of at most one unit in the last place; numbers below 2^-126 are 0."""
    return ONE / a


@reciprocal_fast.intrinsic
def _reciprocal_instruction() -> Callable[..., Any]:
    return _instruction("rcp.approx.ftz.f32 $0, $1;")


def _instruction(text: str) -> Callable[..., Any]:
    """A function of one float32 that is one instruction: CUDA's library would scale what may be below 2^-126, and back."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def apply(typing, value):
        def generate(context, builder, signature, arguments):
            function = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
            return builder.asm(function, text, "=f,f", arguments, side_effect=False)

        return types.float32(types.float32), generate

    def applied(value):
        return apply(value)

    return applied


@native("float2int_rn")
def round_int32(a):
    """The integer nearest to a, the even one of two, as int32."""
    return round(a)


@native("float2ll_rn")
def round_int64(a):
    """The integer nearest to a, as int64: sums of integers do not depend on their order."""
    return round(a)


@formula
def rsqrt(a):
    """1 / sqrt(a), on a GPU with an error of at most two units in the last place; a: not below 2^-126."""
    return a ** float32(-0.5)


@rsqrt.intrinsic
def _rsqrt_instruction() -> Callable[..., Any]:
    return _instruction("rsqrt.approx.ftz.f32 $0, $1;")


def multiply_by_reciprocal(a, b):
    """``divide_normal`` on a GPU."""
    return a * reciprocal_fast(b)


@formula
def divide_normal(a, b):
    """``divide_fast`` for b between 2^-126 and 2^126, for which CUDA's library need not scale."""
    return a / b


@divide_normal.intrinsic
def _divide_by_reciprocal() -> Callable[..., Any]:
    return multiply_by_reciprocal


@formula
def select_positive(x, a, b):
    """A if x > 0, else b; without a branch on a GPU, whose compiler would skip what a or b takes."""
    return a if x > ZERO else b


@select_positive.intrinsic
def _select_instruction() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def choose(typing, x, a, b):
        def generate(context, builder, signature, arguments):
            function = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
            text = "{ .reg .pred p; setp.gt.f32 p, $1, 0f00000000; selp.f32 $0, $2, $3, p; }"
            return builder.asm(function, text, "=f,f,f,f", arguments, side_effect=False)

        return types.float32(types.float32, types.float32, types.float32), generate

    def chosen(x, a, b):
        return choose(x, a, b)

    return chosen


@formula
def leading_fraction(coordinate):
    """The 24 leading bits of the fraction of a number in fixed point (int64, 32 bits of fraction), as int32."""
    return int32(uint32(coordinate) >> uint32(8))


@leading_fraction.intrinsic
def _shifted_word() -> Callable[..., Any]:
    """Shifts of 32 bits are 64 bits wide in Numba: three instructions in place of one."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def shift(typing, coordinate):
        def generate(context, builder, signature, arguments):
            word = ir.IntType(32)
            return builder.lshr(builder.trunc(arguments[0], word), ir.Constant(word, 8))

        return types.int32(types.int64), generate

    def leading_bits(coordinate):
        return shift(coordinate)

    return leading_bits


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

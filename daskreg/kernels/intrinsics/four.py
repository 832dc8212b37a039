"""Operations on four neighbouring numbers at once, on a CPU, with plain formulas that define them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32

from daskreg.kernels.compiler.formula import formula

HALF = float32(0.5)


@formula
def add_rounded(counts, at, a, b, c, d, factor):
    """``counts[at : at + 4] += factor * (a, b, c, d)``, rounded; counts: (N,) int32, the products are not negative."""
    counts[at] += int32(factor * a + HALF)
    counts[at + 1] += int32(factor * b + HALF)
    counts[at + 2] += int32(factor * c + HALF)
    counts[at + 3] += int32(factor * d + HALF)


@add_rounded.on_cpu
def _add_four() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def add_four(typing, counts, at, a, b, c, d, factor):
        def generate(context, builder, signature, arguments):
            number, whole = ir.FloatType(), ir.IntType(32)
            numbers, wholes = ir.VectorType(number, 4), ir.VectorType(whole, 4)
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.bitcast(builder.gep(array.data, [arguments[1]]), wholes.as_pointer())
            values, factors = ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, ir.Undefined)
            for k in range(4):
                lane = ir.Constant(whole, k)
                values = builder.insert_element(values, arguments[2 + k], lane)
                factors = builder.insert_element(factors, arguments[6], lane)
            half = ir.Constant(numbers, [ir.Constant(number, 0.5)] * 4)
            added = builder.fptosi(builder.fadd(builder.fmul(factors, values), half), wholes)
            builder.store(builder.add(builder.load(place, align=4), added), place, align=4)
            return context.get_dummy_value()

        return types.void(counts, types.int64, *[types.float32] * 5), generate

    def add_rounded(counts, at, a, b, c, d, factor):
        add_four(counts, at, a, b, c, d, factor)

    return add_rounded

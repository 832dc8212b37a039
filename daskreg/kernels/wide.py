"""What a GPU does in one instruction, and the plain formula that says what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import int32

from daskreg.kernels.launch import DISABLED, formula


@formula
def load_four(array, at):
    """``array[at : at + 4]``, array (N,) float32; ``at`` is a multiple of four, the array begins at a multiple of 16 bytes."""
    return array[at], array[at + int32(1)], array[at + int32(2)], array[at + int32(3)]


@formula
def store_four(array, at, a, b, c, d):
    """``array[at : at + 4] = a, b, c, d``, see ``load_four``."""
    array[at], array[at + int32(1)], array[at + int32(2)], array[at + int32(3)] = a, b, c, d


@formula
def quotient(a, b):
    """The quotient a / b; on a GPU to two units of the last place, without a subroutine, for b below 2^126."""
    return a / b


@formula
def get(array, base, at):
    """``array[base + at]``, array (N,) float32; base: 64 bits, the same for many threads or look-ups, at: 32 bits, unsigned."""
    return array[base + at]


@formula
def put(array, base, at, value):
    """``array[base + at] = value``, see ``get``."""
    array[base + at] = value


@get.on_cuda
def _get_near() -> Callable[..., Any]:
    """A pointer to the base and a 32-bit distance: one multiply-add an address."""
    if DISABLED:
        return get.function
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def near(typing, array, base, at):
        def generate(context, builder, signature, arguments):
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            return builder.load(builder.gep(builder.gep(made.data, [arguments[1]]), [builder.zext(arguments[2], base_type)]))

        base_type = _int64()
        return types.float32(array, types.uint64, types.uint32), generate

    def get_near(array, base, at):
        return near(array, base, at)

    return get_near


@put.on_cuda
def _put_near() -> Callable[..., Any]:
    if DISABLED:
        return put.function
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def near(typing, array, base, at, value):
        def generate(context, builder, signature, arguments):
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            pointer = builder.gep(builder.gep(made.data, [arguments[1]]), [builder.zext(arguments[2], base_type)])
            builder.store(arguments[3], pointer)

        base_type = _int64()
        return types.void(array, types.uint64, types.uint32, types.float32), generate

    def put_near(array, base, at, value):
        near(array, base, at, value)

    return put_near


def _int64() -> Any:
    from llvmlite import ir

    return ir.IntType(64)


@load_four.on_cuda
def _load_vector() -> Callable[..., Any]:
    if DISABLED:
        return load_four.function
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def load(typing, array, at):
        def generate(context, builder, signature, arguments):
            kind = signature.args[0]
            made = context.make_array(kind)(context, builder, arguments[0])
            pointer = builder.gep(made.data, [arguments[1]])
            value = builder.load(builder.bitcast(pointer, ir.VectorType(ir.FloatType(), 4).as_pointer()), align=16)
            parts = [builder.extract_element(value, ir.Constant(ir.IntType(32), q)) for q in range(4)]
            return cgutils.pack_array(builder, parts)

        return types.UniTuple(types.float32, 4)(array, at), generate

    def load_wide(array, at):
        return load(array, at)

    return load_wide


@store_four.on_cuda
def _store_vector() -> Callable[..., Any]:
    if DISABLED:
        return store_four.function
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typing, array, at, a, b, c, d):
        def generate(context, builder, signature, arguments):
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            pointer = builder.gep(made.data, [arguments[1]])
            vector = ir.VectorType(ir.FloatType(), 4)
            value = ir.Constant(vector, ir.Undefined)
            for q in range(4):
                value = builder.insert_element(value, arguments[2 + q], ir.Constant(ir.IntType(32), q))
            builder.store(value, builder.bitcast(pointer, vector.as_pointer()), align=16)

        return types.void(array, at, a, b, c, d), generate

    def store_wide(array, at, a, b, c, d):
        store(array, at, a, b, c, d)

    return store_wide


@quotient.on_cuda
def _divide_fast() -> Callable[..., Any]:
    if DISABLED:
        return quotient.function
    from numba.cuda import libdevice

    def divide(a, b):
        return libdevice.fast_fdividef(a, b)

    return divide

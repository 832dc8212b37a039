"""Loads and stores as a GPU has them: a 64-bit base for all threads of a block, and 32 bits for where a thread looks."""

from collections.abc import Callable
from typing import Any

from daskreg.kernels.launch import DISABLED, formula


@formula
def fetch(array, base, byte):
    """``array[base + byte / 4]``, array (N,) float32; base: uint64, byte: uint32, four times the distance from there."""
    return array[int(base) + int(byte) // 4]


@formula
def store(array, base, byte, value):
    """``array[base + byte / 4] = value``, see ``fetch``."""
    array[int(base) + int(byte) // 4] = value


@fetch.on_cuda
def _fetch() -> Callable[..., Any]:
    if DISABLED:
        return fetch.function
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def near(typing, array, base, byte):
        return types.float32(array, types.uint64, types.uint32), lambda context, builder, signature, arguments: builder.load(
            _pointer(context, builder, signature, arguments)
        )

    def fetch_near(array, base, byte):
        return near(array, base, byte)

    return fetch_near


@store.on_cuda
def _store() -> Callable[..., Any]:
    if DISABLED:
        return store.function
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def near(typing, array, base, byte, value):
        def generate(context, builder, signature, arguments):
            builder.store(arguments[3], _pointer(context, builder, signature, arguments))

        return types.void(array, types.uint64, types.uint32, types.float32), generate

    def store_near(array, base, byte, value):
        near(array, base, byte, value)

    return store_near


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """What the compiler turns into one instruction's address: base in a register of the block, distance in one of the thread."""
    from llvmlite import ir

    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    bytes_ = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
    near = builder.gep(bytes_, [builder.zext(arguments[2], ir.IntType(64))])
    return builder.bitcast(near, ir.FloatType().as_pointer())

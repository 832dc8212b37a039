"""Copies from global to shared memory beside other instructions; at once on devices before sm_80, which have none such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskreg.kernels.compiler.configuration import copies_asynchronously
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.memory import load, pointer_beyond


@formula
def copy_async(where, at, shared, to):
    """``shared[to] = load(where, at)``, where a GPU does not wait for the value before ``wait_async``."""
    shared[to] = load(where, at)


@formula
def commit_async():
    """End a group of copies."""


@formula
def wait_async():
    """Wait for this thread's copies, except those of the last group."""


@copy_async.intrinsic
def _copy_async() -> Callable[..., Any]:
    if not copies_asynchronously():
        return copy_async.function
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def copy(typing, where, at, shared, to):
        def generate(context, builder, signature, arguments):
            source, distance, array, place = arguments
            data = context.make_array(signature.args[2])(context, builder, array).data
            to = builder.addrspacecast(builder.gep(data, [place]), ir.FloatType().as_pointer(3))
            kind = ir.FunctionType(ir.VoidType(), [ir.FloatType().as_pointer(3), ir.FloatType().as_pointer(1)])
            text = "cp.async.ca.shared.global [$0], [$1], 4;"
            builder.asm(kind, text, "r,l,~{memory}", [to, pointer_beyond(builder, source, distance)], side_effect=True)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint32, shared, types.uint64), generate

    def copy_value(where, at, shared, to):
        copy(where, at, shared, to)

    return copy_value


@commit_async.intrinsic
def _commit_async() -> Callable[..., Any]:
    return _barrier("cp.async.commit_group;") if copies_asynchronously() else commit_async.function


@wait_async.intrinsic
def _wait_async() -> Callable[..., Any]:
    return _barrier("cp.async.wait_group 1;") if copies_asynchronously() else wait_async.function


def _barrier(text: str) -> Callable[..., Any]:
    """An instruction that the compiler may not move memory accesses across."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def apply(typing):
        def generate(context, builder, signature, arguments):
            builder.asm(ir.FunctionType(ir.VoidType(), []), text, "~{memory}", [], side_effect=True)
            return context.get_dummy_value()

        return types.void(), generate

    def barrier():
        apply()

    return barrier

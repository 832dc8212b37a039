"""Numbers in 16 bits: intensities as float16, gradients as bfloat16, by integer arithmetic.

A bfloat16 is the upper half of a float32: its range, with 8 bits of its fraction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32, uint16, uint32

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.formula import Formula, formula

LOWER = 65535


@formula
def float_to_bits(value):
    """The 32 bits of a float32."""
    return np.float32(value).view(np.uint32)


@float_to_bits.intrinsic
def _bits_of() -> Callable[..., Any]:
    from numba.cuda import libdevice

    def bits_by_name(value):
        return uint32(libdevice.float_as_int(value))

    return bits_by_name


@formula
def bits_to_float(bits):
    """The float32 with these 32 bits."""
    return np.uint32(bits).view(np.float32)


@bits_to_float.intrinsic
def _single_of() -> Callable[..., Any]:
    from numba.cuda import libdevice

    def single_by_name(bits):
        return libdevice.int_as_float(int32(bits))

    return single_by_name


def _decoded(value):
    """As the simulator computes it, where a value knows its type."""
    return value if value.dtype == np.float32 else np.float32(np.uint16(value).view(np.float16))


def _unchanged(value):
    """On a CPU, which stores float32 alone."""
    return value


as_float32 = Formula(_decoded if SIMULATED else _unchanged)
as_float32.__doc__ = "An intensity as float32: a float32 as it is; integers, on a GPU, are the bits of a float16."


@as_float32.intrinsic
def _pixel() -> Callable[..., Any]:
    """One conversion instruction."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def convert(typing, value):
        def generate(context, builder, signature, arguments):
            if value == types.float32:
                return arguments[0]
            bits = arguments[0] if arguments[0].type.width == 16 else builder.trunc(arguments[0], ir.IntType(16))
            function = ir.FunctionType(ir.FloatType(), [ir.IntType(16)])
            return builder.asm(function, "cvt.f32.f16 $0, $1;", "=f,h", [bits], side_effect=False)

        return types.float32(value), generate

    def pixel_by_type(value):
        return convert(value)

    return pixel_by_type


@formula
def identity(value):
    """A number that is stored unchanged."""
    return value


@formula
def from_bfloat16(bits):
    """The float32 of a bfloat16's bits."""
    return bits_to_float(uint32(uint32(bits) << uint32(16)))


@formula
def to_bfloat16(value):
    """The bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = uint32(float_to_bits(value))
    return uint16(((int(bits) + 0x7FFF + (int(bits) >> 16 & 1)) >> 16) & LOWER)


def storage_type(half: bool) -> tuple[Any, Any]:
    """Type and zero of an intensity in a register, before conversion to float32."""
    return (uint32, uint32(0)) if half else (float32, float32(0))


def half_constants(field: Any) -> tuple[bool, ...]:
    """The constants that tell a cooperative kernel that a field has 16 bits; empty for float32."""
    return (True,) if field.dtype == np.uint16 else ()


def to_float16_bits(voxels: Any) -> Any:
    """Bits of float16 (uint16) of float32 values up to 65504, rounded to nearest (11 bits of the fraction); NumPy or CuPy."""
    return voxels.astype(np.float16).view(np.uint16)


def from_float16_bits(bits: Any) -> Any:
    """The float32 values of bits of float16."""
    return bits.view(np.float16).astype(np.float32)

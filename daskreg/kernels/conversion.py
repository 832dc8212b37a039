"""Conversion of fields between float32 and bfloat16, and of stored voxels to float32."""

from __future__ import annotations

from numba import float32

from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.intrinsics.half import from_bfloat16, to_bfloat16

index = int  # replaced by the launcher


@voxelwise()
def decode_bfloat16(z, y, x, bits, values):
    """Float32 values of bfloat16; bits: (3, Z, Y, X) uint16;  values: the same shape, float32."""
    for k in range(3):
        c = index(k)
        values[c, z, y, x] = from_bfloat16(bits[c, z, y, x])


@voxelwise()
def encode_bfloat16(z, y, x, values, bits):
    """Float32 values rounded to the nearest bfloat16; values: (3, Z, Y, X) float32;  bits: the same shape, uint16."""
    for k in range(3):
        c = index(k)
        bits[c, z, y, x] = to_bfloat16(values[c, z, y, x])


@voxelwise()
def to_float32(z, y, x, plane, line, stored, values):
    """Float32 values of a box of voxels of any type, as part of a larger array.

    plane, line: where the box begins in ``values``, ints;  stored: (Z, Y, X);  values: (.., .., X) float32
    """
    values[z + index(plane), y + index(line), x] = float32(stored[z, y, x])

"""Adam's moments in mixed storage: both moments of a voxel share a word of 32 bits, so that one load reads both.

m is a bfloat16 in the upper half. v is in the lower half: it is never negative, so the bit of the sign holds one more bit of the
fraction.
"""

from __future__ import annotations

import numpy as np
from numba import uint32

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.half import bits_to_float, float_to_bits

UPPER, LOWER = 0xFFFF0000, 0xFFFF


@formula
def first_moment(word):
    """M of a voxel and component."""
    return bits_to_float(uint32(word & uint32(UPPER)))


@formula
def second_moment(word):
    """V of a voxel and component."""
    return bits_to_float(uint32(uint32(word & uint32(LOWER)) << uint32(15)))


@formula
def round_first(m):
    """M as a word holds it: rounded to the nearest bfloat16, the even of two."""
    a = uint32(float_to_bits(m))
    return bits_to_float(uint32(uint32(a + uint32(0x7FFF) + uint32(uint32(a >> uint32(16)) & uint32(1))) & uint32(UPPER)))


@formula
def round_second(v, bits):
    """V as a word holds it: rounded stochastically by ``bits`` (0 .. 2^10 - 1)."""
    b = uint32(uint32(uint32(float_to_bits(v)) + uint32(bits << uint32(5))) + uint32(16))
    return bits_to_float(uint32(b & uint32(LOWER << 15)))


@formula
def join_moments(m, v):
    """The word of rounded moments."""
    return uint32(uint32(float_to_bits(m)) | uint32(uint32(float_to_bits(v)) >> uint32(15)))


@formula
def pack_word(m, v, bits):
    """Both moments in a word: m rounded to nearest, v rounded stochastically by ``bits`` (0 .. 2^10 - 1)."""
    return join_moments(round_first(m), round_second(v, bits))


def unpack_moments(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moments of words (uint32) as float32; NumPy."""
    return (words & np.uint32(UPPER)).view(np.float32), ((words & np.uint32(LOWER)) << np.uint32(15)).view(np.float32)


def pack_moments(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The inverse of ``unpack_moments``; bits that do not fit into words are dropped."""
    return (m.view(np.uint32) & np.uint32(UPPER)) | (v.view(np.uint32) >> np.uint32(15) & np.uint32(LOWER))

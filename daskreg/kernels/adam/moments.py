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
def pack_word(m, v, bits):
    """Both moments in a word: m rounded to nearest, v rounded stochastically by ``bits`` (0 .. 2^10 - 1)."""
    a, b = int(uint32(float_to_bits(m))), int(uint32(float_to_bits(v)))
    upper = (a + 0x7FFF + (a >> 16 & 1)) & UPPER
    lower = (b + int(bits) * 32 + 16) >> 15 & LOWER
    return uint32(upper | lower)


def unpack_moments(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moments of words (uint32) as float32; NumPy."""
    return (words & np.uint32(UPPER)).view(np.float32), ((words & np.uint32(LOWER)) << np.uint32(15)).view(np.float32)


def pack_moments(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The inverse of ``unpack_moments``; bits that do not fit into words are dropped."""
    return (m.view(np.uint32) & np.uint32(UPPER)) | (v.view(np.uint32) >> np.uint32(15) & np.uint32(LOWER))

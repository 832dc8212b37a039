"""Adam's moments in mixed storage: both moments of a voxel share a word of 32 bits.

m is in the upper half, a bfloat16. v is in the lower one: as it is never negative, the place of its sign holds one bit more of
the fraction. One load brings both.
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
    """Both moments in a word: m to the nearest, v up or down by the dice (0 .. 2^10 - 1), with the odds of where it lies."""
    a, b = int(uint32(float_to_bits(m))), int(uint32(float_to_bits(v)))
    upper = (a + 0x7FFF + (a >> 16 & 1)) & UPPER
    lower = (b + int(bits) * 32 + 16) >> 15 & LOWER
    return uint32(upper | lower)


def unpack_moments(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moments of words (uint32), float32; NumPy."""
    return (words & np.uint32(UPPER)).view(np.float32), ((words & np.uint32(LOWER)) << np.uint32(15)).view(np.float32)


def pack_moments(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``parted`` the other way; moments that are not what words can hold are cut."""
    return (m.view(np.uint32) & np.uint32(UPPER)) | (v.view(np.uint32) >> np.uint32(15) & np.uint32(LOWER))

"""Random bits that depend on a voxel and an iteration only, for stochastic rounding."""

from __future__ import annotations

from numba import uint32

from daskreg.kernels.compiler.formula import formula

ALL = 0xFFFFFFFF
MIXED, STIRRED = 0x7FEB352D, 0x846CA68B  # multipliers of a 32-bit hash (Wellons, "lowbias32")
GOLDEN = 0x9E3779B9
DICE = 10  # random bits a component: a third of a hash


@formula
def thrown(voxel, t):
    """30 random bits that depend on the voxel's number in the grid and the iteration, and on nothing else."""
    a = uint32((int(voxel) + int(t) * GOLDEN) & ALL)
    a = uint32(a ^ uint32(a >> uint32(16)))
    a = uint32(int(a) * MIXED & ALL)
    a = uint32(a ^ uint32(a >> uint32(15)))
    a = uint32(int(a) * STIRRED & ALL)
    return uint32(a ^ uint32(a >> uint32(16)))


@formula
def die(dice, component):
    """Ten of thirty random bits."""
    return uint32(uint32(dice >> uint32(DICE * component)) & uint32((1 << DICE) - 1))

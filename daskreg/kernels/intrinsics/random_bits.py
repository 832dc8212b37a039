"""Random bits for stochastic rounding, which depend on the voxel and the iteration only."""

from __future__ import annotations

from numba import uint32

from daskreg.kernels.compiler.formula import formula

ALL = 0xFFFFFFFF
MULTIPLIER_1, MULTIPLIER_2 = 0x7FEB352D, 0x846CA68B  # multipliers of a 32-bit hash (Wellons, "lowbias32")
INCREMENT = 0x9E3779B9
BITS = 10  # per component: a third of a hash


@formula
def random_bits(voxel, t):
    """30 random bits from the voxel's number in the grid and the iteration."""
    a = uint32((int(voxel) + int(t) * INCREMENT) & ALL)
    a = uint32(a ^ uint32(a >> uint32(16)))
    a = uint32(int(a) * MULTIPLIER_1 & ALL)
    a = uint32(a ^ uint32(a >> uint32(15)))
    a = uint32(int(a) * MULTIPLIER_2 & ALL)
    return uint32(a ^ uint32(a >> uint32(16)))


@formula
def component_bits(bits, component):
    """The ten bits of a component."""
    return uint32(uint32(bits >> uint32(BITS * component)) & uint32((1 << BITS) - 1))

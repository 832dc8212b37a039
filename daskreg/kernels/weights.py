"""The weight of a voxel, shared by all similarities."""

from numba import float32

from daskreg.kernels.compiler.formula import formula

ONE, ZERO = float32(1), float32(0)
FIXED_POINT_SCALE = 2**28  # units per 1 of the fixed-point sums on a GPU: sums of integers do not depend on their order


@formula
def weight_at(z, y, x, weight, value):
    """0 where ``moved`` is NaN (outside the domain), else the mask; an empty (0, 0, 0) mask is 1 everywhere."""
    if value != value:
        return ZERO
    return weight[z, y, x] if weight.shape[0] > 0 else ONE

"""Mean squared difference, and the weight of a voxel, which all similarities share."""

from numba import float32, int64

from daskreg.kernels.launch import formula, voxelwise

index = int64  # replaced by the launcher
ONE, NIL, TWO = float32(1), float32(0), float32(2)
COUNT = 2**28  # of a term and of a weight: what a GPU counts in, as sums of integers do not depend on their order


@formula
def weight_at(z, y, x, weight, value):
    """0 out of domain (``moved`` is NaN there), else the mask; an empty (0, 0, 0) mask is 1 everywhere."""
    if value != value:
        return NIL
    return weight[z, y, x] if weight.shape[0] > 0 else ONE


@voxelwise(sums=2)
def difference(z, y, x, fixed, weight, moved):
    """Replace ``moved`` by ``2 w (moved - fixed)``; row sums (w (moved - fixed)^2, w).

    fixed, moved: (Z, Y, X) float32;  weight: the same or empty
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    error = value - fixed[z, y, x] if w > NIL else NIL
    moved[z, y, x] = TWO * w * error
    return w * error * error, w

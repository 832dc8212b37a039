"""Mean squared difference."""

from numba import float32

from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.weights import weight_at

ZERO, TWO = float32(0), float32(2)


@voxelwise(sums=2)
def squared_difference(z, y, x, fixed, weight, moved):
    """Replace ``moved`` by ``2 w (moved - fixed)``; row sums (w (moved - fixed)^2, w).

    fixed, moved: (Z, Y, X) float32;  weight: the same shape or empty
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    error = value - fixed[z, y, x] if w > ZERO else ZERO
    moved[z, y, x] = TWO * w * error
    return w * error * error, w

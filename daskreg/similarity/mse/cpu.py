"""Mean squared difference."""

from collections.abc import Callable
from typing import Any

from numba import float32

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.weights import weight_at

ZERO, TWO = float32(0), float32(2)


@voxelwise(sums=2)
def squared_difference(z, y, x, gain, offset, fixed, weight, moved):
    """Replace ``moved`` by ``2 w gain e``, e = gain moved + offset - fixed; row sums (w e^2, w).

    gain, offset: float32;  fixed, moved: (Z, Y, X) float32;  weight: the same shape or empty
    """
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    error = gain * value + offset - fixed[z, y, x] if w > ZERO else ZERO
    moved[z, y, x] = TWO * w * error * gain
    return w * error * error, w


@formula
def fixed_value(fixed, z, y, x):
    """An intensity of the fixed image."""
    return fixed[z, y, x]


@fixed_value.on_cuda
def _fixed_value() -> Callable[..., Any]:
    from daskreg.similarity.mse.cuda import fixed_value_on_cuda

    return fixed_value_on_cuda


@voxelwise(sums=5)
def intensity_moments(z, y, x, fixed, weight, moved):
    """Row sums (w, w fixed, w moved, w fixed^2, w moved^2). Arguments as in ``squared_difference``."""
    value = moved[z, y, x]
    w = weight_at(z, y, x, weight, value)
    f, m = fixed_value(fixed, z, y, x), value if w > ZERO else ZERO
    return w, w * f, w * m, w * f * f, w * m * m

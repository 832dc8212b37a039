"""Sampling of a displacement field."""

from numba import int64

from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.sampling.cpu import sampling_point, trilinear

index = int64  # replaced by the launcher


@voxelwise()
def sample_field(z, y, x, affine, linear, u, field, values):
    """``values(x) = field(A x + t + S u(x))``, trilinear, zero outside the field.

    field: (3, Z', Y', X') float32;  values: (3, Z, Y, X) float32;  other arguments as in ``sample``
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, 0, affine, linear, u)
    values[index(0), z, y, x] = trilinear(field[index(0)], k, j, i, wz, wy, wx)
    values[index(1), z, y, x] = trilinear(field[index(1)], k, j, i, wz, wy, wx)
    values[index(2), z, y, x] = trilinear(field[index(2)], k, j, i, wz, wy, wx)

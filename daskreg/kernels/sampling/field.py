"""Sampling of a displacement field, which is zero outside its voxels."""

from collections.abc import Callable
from typing import Any

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.sampling.cpu import clamp, corner_values, in_range, sampling_point

index = int64  # replaced by the launcher
ONE, ZERO = float32(1), float32(0)


@formula
def corner_weights(i, w, n):
    """Weights of the two voxels around a point along an axis, 0 outside the field."""
    return (ONE - w) * in_range(i, n), w * in_range(i + int32(1), n)


@formula
def displacement(component, k, j, i, wz, wy, wx):
    """Trilinear value of a component (Z, Y, X); each corner outside the field counts as zero."""
    n, one = component.shape, int32(1)
    a, b, c, d, e, f, g, h = corner_values(component, clamp(k, n[0]), clamp(k + one, n[0]), j, i)
    z0, z1 = corner_weights(k, wz, n[0])
    y0, y1 = corner_weights(j, wy, n[1])
    x0, x1 = corner_weights(i, wx, n[2])
    plane0 = y0 * (x0 * a + x1 * b) + y1 * (x0 * c + x1 * d)
    plane1 = y0 * (x0 * e + x1 * f) + y1 * (x0 * g + x1 * h)
    return ZERO + (z0 * plane0 + z1 * plane1)


@displacement.on_cuda
def _displacement() -> Callable[..., Any]:
    from daskreg.kernels.sampling.cuda import displacement_on_cuda

    return displacement_on_cuda


@voxelwise()
def sample_field(z, y, x, affine, linear, u, field, values):
    """``values(x) = field(A x + t + S u(x))``, trilinear, zero outside the field.

    field: (3, Z', Y', X') float32;  values: (3, Z, Y, X) float32;  other arguments as in ``sample``
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, 0, affine, linear, u)
    values[index(0), z, y, x] = displacement(field[index(0)], k, j, i, wz, wy, wx)
    values[index(1), z, y, x] = displacement(field[index(1)], k, j, i, wz, wy, wx)
    values[index(2), z, y, x] = displacement(field[index(2)], k, j, i, wz, wy, wx)

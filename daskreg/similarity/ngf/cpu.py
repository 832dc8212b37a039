"""Normalised gradient fields, the same bodies on a CPU and on a GPU.

Differences are central, and one-sided on the first and the last voxel of an axis of the grid. Arrays hold the planes that the
differences read, so that they end within reach only where the grid does.
"""

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.intrinsics.arithmetic import divide_fast
from daskreg.kernels.intrinsics.half import as_float32
from daskreg.kernels.smoothing.cpu import clamp
from daskreg.kernels.weights import weight_at

index = int64  # replaced by the launcher
ZERO, HALF, ONE, TWO = float32(0), float32(0.5), float32(1), float32(2)


@formula
def inverse_distance(i, n):
    """1 over the voxels between the neighbours of which a difference is taken at i."""
    return HALF if i > 0 and i < int32(n) - 1 else ONE


@formula
def differences(z, y, x, image):
    """Gradient of an image (Z, Y, X), a voxel, components z, y, x."""
    nz, ny, nx = image.shape
    k, j, i = int32(z), int32(y), int32(x)
    dz = as_float32(image[clamp(k + 1, nz), y, x]) - as_float32(image[clamp(k - 1, nz), y, x])
    dy = as_float32(image[z, clamp(j + 1, ny), x]) - as_float32(image[z, clamp(j - 1, ny), x])
    dx = as_float32(image[z, y, clamp(i + 1, nx)]) - as_float32(image[z, y, clamp(i - 1, nx)])
    return dz * inverse_distance(k, nz), dy * inverse_distance(j, ny), dx * inverse_distance(i, nx)


@formula
def lowest_neighbour(z, y, x, weight):
    """The smallest weight of the voxels of which differences are taken; 1 without a mask."""
    if weight.shape[0] == 0:
        return ONE
    nz, ny, nx = weight.shape
    k, j, i = int32(z), int32(y), int32(x)
    along_z = min(weight[clamp(k - 1, nz), y, x], weight[clamp(k + 1, nz), y, x])
    along_y = min(weight[z, clamp(j - 1, ny), x], weight[z, clamp(j + 1, ny), x])
    along_x = min(weight[z, y, clamp(i - 1, nx)], weight[z, y, clamp(i + 1, nx)])
    return min(along_z, min(along_y, along_x))


@formula
def write_factors(z, y, x, eta_squared, fixed, weight, moved, factors):
    """``ngf_factors`` at a voxel."""
    w, square, gz, gy, gx = weight_at(z, y, x, weight, moved[z, y, x]), ZERO, ZERO, ZERO, ZERO
    if w > ZERO:
        mz, my, mx = differences(z, y, x, moved)
        total = mz + my + mx
        w = w if total == total and lowest_neighbour(z, y, x, weight) > ZERO else ZERO
        if w > ZERO:
            fz, fy, fx = differences(z, y, x, fixed)
            product = fz * mz + fy * my + fx * mx
            of_moved = mz * mz + my * my + mx * mx + eta_squared
            ratio = divide_fast(product, (fz * fz + fy * fy + fx * fx + eta_squared) * of_moved)
            square, scale, along = product * ratio, TWO * w * ratio, divide_fast(product, of_moved)
            gz, gy, gx = scale * (fz - along * mz), scale * (fy - along * my), scale * (fx - along * mx)
    factors[index(0), z, y, x], factors[index(1), z, y, x], factors[index(2), z, y, x] = gz, gy, gx
    return w * square, w


@voxelwise(sums=2)
def ngf_factors(z, y, x, eta_squared, fixed, weight, moved, factors):
    """Write ``w d(<n(F), n(M)>^2) / d(grad M)``; row sums (w <n(F), n(M)>^2, w).

    eta_squared: float32;  fixed, moved: (Z, Y, X) float32, moved NaN out of domain;  weight: the same or empty;
    factors: (3, Z, Y, X) float32. w is 0 where a difference reads a voxel that is out of domain or has no weight.
    """
    return write_factors(z, y, x, eta_squared, fixed, weight, moved, factors)


@formula
def weigh_end(i, n):
    """How a one-sided difference at voxel i weighs voxel i itself: -1 on the first, 1 on the last voxel of an axis."""
    return (ONE if i == int32(n) - 1 else ZERO) - (ONE if i == 0 else ZERO)


@formula
def weigh_before(i, n):
    """How the difference at the voxel before i weighs voxel i."""
    return inverse_distance(i - 1, n) if i > 0 else ZERO


@formula
def weigh_behind(i, n):
    """How the difference at the voxel behind i weighs voxel i, but for the sign."""
    return inverse_distance(i + 1, n) if i < int32(n) - 1 else ZERO


@voxelwise()
def ngf_slope(z, y, x, factors, moved):
    """Replace ``moved`` by minus the adjoint of the differences, applied to the factors (3, Z, Y, X): N dC/dmoved."""
    _, nz, ny, nx = factors.shape
    k, j, i = int32(z), int32(y), int32(x)
    of_z, of_y, of_x = index(0), index(1), index(2)
    along_z = (
        weigh_before(k, nz) * factors[of_z, clamp(k - 1, nz), y, x]
        - weigh_behind(k, nz) * factors[of_z, clamp(k + 1, nz), y, x]
        + weigh_end(k, nz) * factors[of_z, z, y, x]
    )
    along_y = (
        weigh_before(j, ny) * factors[of_y, z, clamp(j - 1, ny), x]
        - weigh_behind(j, ny) * factors[of_y, z, clamp(j + 1, ny), x]
        + weigh_end(j, ny) * factors[of_y, z, y, x]
    )
    along_x = (
        weigh_before(i, nx) * factors[of_x, z, y, clamp(i - 1, nx)]
        - weigh_behind(i, nx) * factors[of_x, z, y, clamp(i + 1, nx)]
        + weigh_end(i, nx) * factors[of_x, z, y, x]
    )
    moved[z, y, x] = -(along_z + along_y + along_x)

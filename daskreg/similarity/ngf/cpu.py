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
ZERO, HALF, ONE, TWO, FOUR = float32(0), float32(0.5), float32(1), float32(2), float32(4)


@formula
def inverse_distance(i, n):
    """1 over the voxels between the neighbours of which a difference is taken at i."""
    return HALF if i > 0 and i < int32(n) - 1 else ONE


@formula
def before(x, inside, n):
    """The voxel before x along a row, or the first."""
    return index(x - index(1)) if inside else clamp(int32(x) - 1, n)


@formula
def behind(x, inside, n):
    """The voxel behind x along a row, or the last."""
    return index(x + index(1)) if inside else clamp(int32(x) + 1, n)


@formula
def differences(z, y, x, inside, image):
    """Gradient of an image (Z, Y, X), a voxel, components z, y, x."""
    nz, ny, nx = image.shape
    k, j = int32(z), int32(y)
    dz = as_float32(image[clamp(k + 1, nz), y, x]) - as_float32(image[clamp(k - 1, nz), y, x])
    dy = as_float32(image[z, clamp(j + 1, ny), x]) - as_float32(image[z, clamp(j - 1, ny), x])
    dx = as_float32(image[z, y, behind(x, inside, nx)]) - as_float32(image[z, y, before(x, inside, nx)])
    along_x = HALF if inside else inverse_distance(int32(x), nx)
    return dz * inverse_distance(k, nz), dy * inverse_distance(j, ny), dx * along_x


@formula
def lowest_neighbour(z, y, x, inside, weight):
    """The smallest weight of the voxels of which differences are taken; 1 without a mask."""
    if weight.shape[0] == 0:
        return ONE
    nz, ny, nx = weight.shape
    k, j = int32(z), int32(y)
    along_z = min(weight[clamp(k - 1, nz), y, x], weight[clamp(k + 1, nz), y, x])
    along_y = min(weight[z, clamp(j - 1, ny), x], weight[z, clamp(j + 1, ny), x])
    along_x = min(weight[z, y, before(x, inside, nx)], weight[z, y, behind(x, inside, nx)])
    return min(along_z, min(along_y, along_x))


@formula
def write_factors(z, y, x, inside, eta_squared, of_product, of_square, fixed, weight, moved, factors):
    """``ngf_factors`` at a voxel. Without branches, so that a CPU computes several voxels at once."""
    mz, my, mx = differences(z, y, x, inside, moved)
    fz, fy, fx = differences(z, y, x, inside, fixed)
    total = mz + my + mx  # not a number where one of them is not
    w = weight_at(z, y, x, weight, moved[z, y, x])
    w = w if total == total and lowest_neighbour(z, y, x, inside, weight) > ZERO else ZERO
    product = fz * mz + fy * my + fx * mx
    square = mz * mz + my * my + mx * mx
    of_moved = square + eta_squared
    ratio = divide_fast(product, (fz * fz + fy * fy + fx * fx + eta_squared) * of_moved)
    scale, along = TWO * w * of_product * ratio, divide_fast(product, of_moved)
    length = divide_fast(square, of_moved)  # |n(M)|^2
    shorter = FOUR * w * of_square * divide_fast(length * (ONE - length), of_moved)
    known = w > ZERO
    factors[index(0), z, y, x] = scale * (fz - along * mz) - shorter * mz if known else ZERO
    factors[index(1), z, y, x] = scale * (fy - along * my) - shorter * my if known else ZERO
    factors[index(2), z, y, x] = scale * (fx - along * mx) - shorter * mx if known else ZERO
    return of_product * (w * product * ratio) - of_square * (w * length * length) if known else ZERO, w


@voxelwise(sums=2, border=True)
def ngf_factors(z, y, x, inside, reach, eta_squared, of_product, of_square, fixed, weight, moved, factors):
    """With ``v = of_product <n(F), n(M)>^2 - of_square |n(M)|^4`` write ``w dv / d(grad M)``; row sums (w v, w).

    reach: 1;  eta_squared, of_product, of_square: float32;  fixed, moved: (Z, Y, X) float32, moved NaN out of domain;
    weight: the same or empty;  factors: (3, Z, Y, X) float32.
    w is 0 where a difference reads a voxel that is out of domain or has no weight.
    """
    return write_factors(z, y, x, inside, eta_squared, of_product, of_square, fixed, weight, moved, factors)


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


@voxelwise(border=True)
def ngf_slope(z, y, x, inside, reach, factors, moved):
    """Replace ``moved`` by minus the adjoint of the differences, applied to the factors (3, Z, Y, X): N dC/dmoved.

    reach: 2, since differences at the neighbours of x are one-sided where those are the ends of a row
    """
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
    left, right = factors[of_x, z, y, before(x, inside, nx)], factors[of_x, z, y, behind(x, inside, nx)]
    if inside:
        along_x = HALF * left - HALF * right
    else:
        along_x = weigh_before(i, nx) * left - weigh_behind(i, nx) * right + weigh_end(i, nx) * factors[of_x, z, y, x]
    moved[z, y, x] = -(along_z + along_y + along_x)

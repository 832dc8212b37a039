"""Normalised gradient fields, the same bodies on a CPU and on a GPU.

Differences are central, and one-sided on the first and the last voxel of an axis of the grid. Smoothed ones are means of nine,
weighted by 1, 2 and 1 along each of the other two axes, where the outermost voxels count as their own neighbours: that smoothing
is its own adjoint. Arrays hold the planes that the differences read, so that they end within reach only where the grid does.
"""

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.intrinsics.arithmetic import divide_fast
from daskreg.kernels.intrinsics.half import as_float32
from daskreg.kernels.smoothing.cpu import clamp
from daskreg.kernels.weights import weight_at

index = int64  # replaced by the launcher
ZERO, QUARTER, HALF, ONE, TWO, FOUR = float32(0), float32(0.25), float32(0.5), float32(1), float32(2), float32(4)


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
def smooth(a, b, c):
    """Of three neighbours."""
    return QUARTER * (a + c) + HALF * b


@formula
def row_of_three(z, y, x, inside, image):
    """Along x around a voxel: smoothed, and the difference of both neighbours."""
    nx = image.shape[2]
    a, c = as_float32(image[z, y, before(x, inside, nx)]), as_float32(image[z, y, behind(x, inside, nx)])
    return smooth(a, as_float32(image[z, y, x]), c), c - a


@formula
def plane_of_nine(z, y, x, inside, image):
    """Around a voxel: smoothed along both axes, and the differences along y and x, smoothed across."""
    ny, j = image.shape[1], int32(y)
    a, of_a = row_of_three(z, clamp(j - 1, ny), x, inside, image)
    b, of_b = row_of_three(z, y, x, inside, image)
    c, of_c = row_of_three(z, clamp(j + 1, ny), x, inside, image)
    return smooth(a, b, c), c - a, smooth(of_a, of_b, of_c)


@formula
def smoothed_differences(z, y, x, inside, image):
    """``differences``, smoothed across."""
    nz, ny, nx = image.shape
    k = int32(z)
    a, ay, ax = plane_of_nine(clamp(k - 1, nz), y, x, inside, image)
    _, by, bx = plane_of_nine(z, y, x, inside, image)
    c, cy, cx = plane_of_nine(clamp(k + 1, nz), y, x, inside, image)
    along_x = HALF if inside else inverse_distance(int32(x), nx)
    dz, dy, dx = c - a, smooth(ay, by, cy), smooth(ax, bx, cx)
    return dz * inverse_distance(k, nz), dy * inverse_distance(int32(y), ny), dx * along_x


@formula
def lowest_of_three(z, y, x, inside, weight):
    """The smallest weight along x around a voxel."""
    nx = weight.shape[2]
    return min(weight[z, y, x], min(weight[z, y, before(x, inside, nx)], weight[z, y, behind(x, inside, nx)]))


@formula
def lowest_of_nine(z, y, x, inside, weight):
    """The smallest weight in a plane around a voxel."""
    ny, j = weight.shape[1], int32(y)
    sides = min(lowest_of_three(z, clamp(j - 1, ny), x, inside, weight), lowest_of_three(z, clamp(j + 1, ny), x, inside, weight))
    return min(lowest_of_three(z, y, x, inside, weight), sides)


@formula
def lowest_around(z, y, x, inside, weight):
    """The smallest weight of the voxels of which smoothed differences are taken; 1 without a mask."""
    if weight.shape[0] == 0:
        return ONE
    nz, k = weight.shape[0], int32(z)
    sides = min(lowest_of_nine(clamp(k - 1, nz), y, x, inside, weight), lowest_of_nine(clamp(k + 1, nz), y, x, inside, weight))
    return min(lowest_of_nine(z, y, x, inside, weight), sides)


@formula
def write_factors(z, y, x, inside, eta_squared, of_product, of_square, fixed, weight, moved, factors):
    """``ngf_factors`` at a voxel. Without branches, so that a CPU computes several voxels at once."""
    of_moved = differences(z, y, x, inside, moved)
    of_fixed = differences(z, y, x, inside, fixed)
    lowest = lowest_neighbour(z, y, x, inside, weight)
    w = weight_at(z, y, x, weight, moved[z, y, x])
    return compare(z, y, x, eta_squared, of_product, of_square, of_fixed, of_moved, w, lowest, factors)


@formula
def write_smoothed_factors(z, y, x, inside, eta_squared, of_product, of_square, fixed, weight, moved, factors):
    """``write_factors`` by smoothed differences."""
    of_moved = smoothed_differences(z, y, x, inside, moved)
    of_fixed = smoothed_differences(z, y, x, inside, fixed)
    lowest = lowest_around(z, y, x, inside, weight)
    w = weight_at(z, y, x, weight, moved[z, y, x])
    return compare(z, y, x, eta_squared, of_product, of_square, of_fixed, of_moved, w, lowest, factors)


@formula
def compare(z, y, x, eta_squared, of_product, of_square, of_fixed, of_moved, w, lowest, factors):
    """Factors of one voxel, from both gradients, its weight and the lowest one that was read."""
    fz, fy, fx = of_fixed
    mz, my, mx = of_moved
    total = mz + my + mx  # not a number where one of them is not
    w = w if total == total and lowest > ZERO else ZERO
    product = fz * mz + fy * my + fx * mx
    square = mz * mz + my * my + mx * mx
    above = square + eta_squared
    ratio = divide_fast(product, (fz * fz + fy * fy + fx * fx + eta_squared) * above)
    scale, along = TWO * w * of_product * ratio, divide_fast(product, above)
    length = divide_fast(square, above)  # |n(M)|^2
    shorter = FOUR * w * of_square * divide_fast(length * (ONE - length), above)
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


@voxelwise(sums=2, border=True)
def ngf_smoothed_factors(z, y, x, inside, reach, eta_squared, of_product, of_square, fixed, weight, moved, factors):
    """``ngf_factors`` by smoothed differences."""
    return write_smoothed_factors(z, y, x, inside, eta_squared, of_product, of_square, fixed, weight, moved, factors)


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


@formula
def smoothed_row(of, z, y, x, inside, factors):
    """A component along x around a voxel."""
    nx = factors.shape[3]
    return smooth(factors[of, z, y, before(x, inside, nx)], factors[of, z, y, x], factors[of, z, y, behind(x, inside, nx)])


@formula
def smoothed_back_along_x(of, z, y, x, inside, factors):
    """The adjoint of the difference along x, smoothed along y."""
    ny, nx = factors.shape[2], factors.shape[3]
    j, i = int32(y), int32(x)
    left, right = before(x, inside, nx), behind(x, inside, nx)
    up, down = clamp(j - 1, ny), clamp(j + 1, ny)
    a = smooth(factors[of, z, up, left], factors[of, z, y, left], factors[of, z, down, left])
    c = smooth(factors[of, z, up, right], factors[of, z, y, right], factors[of, z, down, right])
    if inside:
        return HALF * a - HALF * c
    b = smooth(factors[of, z, up, x], factors[of, z, y, x], factors[of, z, down, x])
    return weigh_before(i, nx) * a - weigh_behind(i, nx) * c + weigh_end(i, nx) * b


@formula
def smoothed_back_along_y(of, z, y, x, inside, factors):
    """The adjoint of the difference along y, smoothed along x."""
    ny, j = factors.shape[2], int32(y)
    a = smoothed_row(of, z, clamp(j - 1, ny), x, inside, factors)
    c = smoothed_row(of, z, clamp(j + 1, ny), x, inside, factors)
    back = weigh_before(j, ny) * a - weigh_behind(j, ny) * c
    return back + weigh_end(j, ny) * smoothed_row(of, z, y, x, inside, factors)


@formula
def smoothed_plane(of, z, y, x, inside, factors):
    """A component along both axes around a voxel."""
    ny, j = factors.shape[2], int32(y)
    a = smoothed_row(of, z, clamp(j - 1, ny), x, inside, factors)
    c = smoothed_row(of, z, clamp(j + 1, ny), x, inside, factors)
    return smooth(a, smoothed_row(of, z, y, x, inside, factors), c)


@voxelwise(border=True)
def ngf_smoothed_slope(z, y, x, inside, reach, factors, moved):
    """``ngf_slope`` of smoothed differences."""
    nz, k = factors.shape[1], int32(z)
    of_z, of_y, of_x = index(0), index(1), index(2)
    above, below = clamp(k - 1, nz), clamp(k + 1, nz)
    along_z = (
        weigh_before(k, nz) * smoothed_plane(of_z, above, y, x, inside, factors)
        - weigh_behind(k, nz) * smoothed_plane(of_z, below, y, x, inside, factors)
        + weigh_end(k, nz) * smoothed_plane(of_z, z, y, x, inside, factors)
    )
    along_y = smooth(
        smoothed_back_along_y(of_y, above, y, x, inside, factors),
        smoothed_back_along_y(of_y, z, y, x, inside, factors),
        smoothed_back_along_y(of_y, below, y, x, inside, factors),
    )
    along_x = smooth(
        smoothed_back_along_x(of_x, above, y, x, inside, factors),
        smoothed_back_along_x(of_x, z, y, x, inside, factors),
        smoothed_back_along_x(of_x, below, y, x, inside, factors),
    )
    moved[z, y, x] = -(along_z + along_y + along_x)

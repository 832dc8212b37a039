"""Composite implicit sampling: ``moved(x) = M(A x + t + S u(x))``, without storing a grid or p (method, section 2).

A x + t is computed from global indices in 64-bit fixed point (units of 2^-32 voxel), exactly and independently of the block, and
then split into a whole and a fractional part; float32 would lose 1e-3 voxel at index 30 000. The formulas have no branches for
the faces, so a CPU can vectorise them with gather instructions. On a GPU every rounding is explicit, see ``sampling.cuda``.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)
UNIT = float32(2.0**-24)  # a float32 holds 24 bits of the fraction
NAN = float32(math.nan)
# where a sample is known: between the centres of the outermost voxels; over the extent of all voxels; or everywhere. Beyond the
# outermost centres the nearest voxel counts.
CENTERS, EXTENT, EVERYWHERE = 0, 1, 2


@formula
def affine_coordinate(line, z, y, x, affine):
    """Component ``line`` of A x + t as a whole number of voxels and a fraction: (int32, float32 in [0, 1])."""
    coordinate = affine[4 * line + 0] * z + affine[4 * line + 1] * y + affine[4 * line + 2] * x + affine[4 * line + 3]
    return int32(coordinate >> int64(32)), float32((coordinate >> int64(8)) & int64(0xFFFFFF)) * UNIT


@formula
def displaced_coordinate(line, z, y, x, affine, linear, uz, uy, ux):
    """Component ``line`` of A x + t + S u, as in ``affine_coordinate``."""
    whole, rest = affine_coordinate(line, z, y, x, affine)
    rest += linear[3 * line + 0] * uz + linear[3 * line + 1] * uy + linear[3 * line + 2] * ux
    carry = math.floor(rest)
    return whole + int32(carry), rest - float32(carry)


@displaced_coordinate.on_cuda
def _displaced() -> Callable[..., Any]:
    from daskreg.kernels.sampling.cuda import displaced_on_cuda

    return displaced_on_cuda


@formula
def sampling_point(z, y, x, first, affine, linear, u):
    """p(x) = A x + t + S u(x) as (k, j, i, wz, wy, wx); u None means zero everywhere."""
    gz, gy, gx = int64(z) + int64(first), int64(y), int64(x)
    if u is None:
        k, wz = affine_coordinate(0, gz, gy, gx, affine)
        j, wy = affine_coordinate(1, gz, gy, gx, affine)
        i, wx = affine_coordinate(2, gz, gy, gx, affine)
    else:
        uz, uy, ux = u[index(0), z, y, x], u[index(1), z, y, x], u[index(2), z, y, x]
        k, wz = displaced_coordinate(0, gz, gy, gx, affine, linear, uz, uy, ux)
        j, wy = displaced_coordinate(1, gz, gy, gx, affine, linear, uz, uy, ux)
        i, wx = displaced_coordinate(2, gz, gy, gx, affine, linear, uz, uy, ux)
    return k, j, i, wz, wy, wx


@formula
def clamp(i, n):
    """The index in 0 .. n - 1 nearest to i."""
    return index(min(max(i, int32(0)), int32(n) - int32(1)))


@formula
def in_range(i, n):
    """1 if i is a voxel of the axis, 0 outside."""
    return ONE if int32(0) <= i < int32(n) else ZERO


@formula
def within(k, w, n, domain):
    """Whether k + w lies in the domain of an axis of n voxels: see ``CENTERS``, ``EXTENT``, ``EVERYWHERE``.

    Along an axis of one voxel ``CENTERS`` is the voxel's extent.
    """
    margin = HALF if (domain != CENTERS) | (n == 1) else ZERO
    one = int32(1)
    above = (k >= 0) | ((k == -one) & (w >= ONE - margin))
    below = (k < int32(n) - one) | ((k == int32(n) - one) & ((w <= ZERO) | (w < margin)))
    return (above & below) | (domain == EVERYWHERE)


@formula
def in_domain(image, planes, domain, k, j, i, wz, wy, wx):
    """Whether a point lies in the domain of the whole image, which has ``planes`` planes."""
    rows = within(j, wy, image.shape[1], domain) & within(i, wx, image.shape[2], domain)
    return within(k, wz, planes, domain) & rows


@formula
def corner_planes(image, origin, planes, k):
    """The two planes around k among those that are held, and 1 where a plane is held, 0 where it is not.

    Beyond the faces of the whole image its outermost plane counts.
    """
    k0, k1 = int32(clamp(k, planes)) - int32(origin), int32(clamp(k + int32(1), planes)) - int32(origin)
    held = image.shape[0]
    return clamp(k0, held), clamp(k1, held), in_range(k0, held), in_range(k1, held)


@formula
def corner_values(image, k0, k1, j, i):
    """The eight voxels around a point, x fastest; beyond the faces of the image the nearest voxel."""
    one = int32(1)
    j0, i0 = clamp(j, image.shape[1]), clamp(i, image.shape[2])
    j1, i1 = clamp(j + one, image.shape[1]), clamp(i + one, image.shape[2])
    return (image[k0, j0, i0], image[k0, j0, i1], image[k0, j1, i0], image[k0, j1, i1],
            image[k1, j0, i0], image[k1, j0, i1], image[k1, j1, i0], image[k1, j1, i1])  # fmt: skip


@formula
def trilinear(image, origin, planes, k, j, i, wz, wy, wx):
    """Value at the voxel (k, j, i) plus the fraction w; ``image`` holds planes ``origin ..`` of an image of ``planes`` planes.

    The value is 0 + (a + b), where a and b come from the two planes along z, 0 where one is not held. Ranks that hold one of the
    planes add a or b to 0, so the result is the same bit for bit, including the sign of zero.
    """
    k0, k1, held0, held1 = corner_planes(image, origin, planes, k)
    a, b, c, d, e, f, g, h = corner_values(image, k0, k1, j, i)
    z0, z1, y0, x0 = (ONE - wz) * held0, wz * held1, ONE - wy, ONE - wx
    plane0 = y0 * (x0 * a + wx * b) + wy * (x0 * c + wx * d)
    plane1 = y0 * (x0 * e + wx * f) + wy * (x0 * g + wx * h)
    return ZERO + (z0 * plane0 + z1 * plane1)


@trilinear.on_cuda
def _trilinear() -> Callable[..., Any]:
    from daskreg.kernels.sampling.cuda import trilinear_on_cuda

    return trilinear_on_cuda


@formula
def trilinear_gradient(image, origin, planes, k, j, i, wz, wy, wx):
    """Derivatives of ``trilinear`` along z, y, x, in intensity per voxel; 0 along an axis beyond whose faces the point lies."""
    k0, k1, held0, held1 = corner_planes(image, origin, planes, k)
    a, b, c, d, e, f, g, h = corner_values(image, k0, k1, j, i)
    z0, z1, y0, x0 = (ONE - wz) * held0, wz * held1, ONE - wy, ONE - wx
    row00, row01, row10, row11 = x0 * a + wx * b, x0 * c + wx * d, x0 * e + wx * f, x0 * g + wx * h
    dz = held1 * (y0 * row10 + wy * row11) - held0 * (y0 * row00 + wy * row01)
    dy = z0 * (row01 - row00) + z1 * (row11 - row10)
    dx0 = y0 * (b - a) + wy * (d - c)
    dx1 = y0 * (f - e) + wy * (h - g)
    return ZERO + dz, ZERO + dy, ZERO + (z0 * dx0 + z1 * dx1)


@trilinear_gradient.on_cuda
def _trilinear_gradient() -> Callable[..., Any]:
    from daskreg.kernels.sampling.cuda import gradient_on_cuda

    return gradient_on_cuda


@voxelwise(cooperative="sampling.cuda.sample")
def sample(z, y, x, first, affine, linear, u, origin, planes, domain, image, moved):
    """``moved(x) = image(A x + t + S u(x))``, NaN outside the domain.


    first: plane of the global grid at z = 0 (int);  affine: 12 int64, rows of (A t) in units of 2^-32 voxel;
    linear: S, 9 float32;  u: (3, Z, Y, X) float32, voxels, or None;  origin: plane of the whole image at ``image[0]``,
    planes: number of planes of the whole image, domain: CENTERS, EXTENT or EVERYWHERE (ints);
    image: (Z', Y', X') float32, all planes that are read;
    moved: (Z, Y, X) float32
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    inside = in_domain(image, planes, domain, k, j, i, wz, wy, wx)
    moved[z, y, x] = trilinear(image, origin, planes, k, j, i, wz, wy, wx) if inside else NAN


@voxelwise()
def sample_stack(z, y, x, first, affine, linear, u, origin, planes, domain, images, moved):
    """``sample`` of several images on one grid, in one launch: small ones take less time than a launch on a GPU.

    images: (C, Z', Y', X') float32;  moved: (C, Z, Y, X) float32. Other arguments as in ``sample``.
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    inside = in_domain(images[0], planes, domain, k, j, i, wz, wy, wx)
    for c in range(images.shape[0]):
        moved[c, z, y, x] = trilinear(images[c], origin, planes, k, j, i, wz, wy, wx) if inside else NAN


@voxelwise()
def sample_cells(z, y, x, first, affine, linear, u, cells, corner, extent, domain, image, moved):
    """``sample`` at the points between some planes and rows of voxels alone; elsewhere ``moved`` is left as it is.

    cells: points p with ``cells[0] <= floor(p_z) < cells[1]`` and ``cells[2] <= floor(p_y) < cells[3]`` (int32);  corner: indices
    in the whole image of ``image[0, 0, 0]``, extent: shape of the whole image (int32);  image: (Z', Y', X') float32, all that
    these points read. Other arguments as in ``sample``.
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    here = (cells[0] <= k) & (k < cells[1]) & (cells[2] <= j) & (j < cells[3])
    inside = within(k, wz, extent[0], domain) & within(j, wy, extent[1], domain) & within(i, wx, extent[2], domain)
    if here & inside:
        moved[z, y, x] = trilinear(image, corner[0], extent[0], k, j - corner[1], i - corner[2], wz, wy, wx)


@voxelwise()
def sample_nearest(z, y, x, first, affine, linear, u, image, moved):
    """Sample the nearest voxel (a half rounds up), for any dtype; voxels outside ``image`` are left unchanged.

    Arguments as in ``sample``.
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    k, j, i = k + int32(wz >= HALF), j + int32(wy >= HALF), i + int32(wx >= HALF)
    if 0 <= k < image.shape[0] and 0 <= j < image.shape[1] and 0 <= i < image.shape[2]:
        moved[z, y, x] = image[index(k), index(j), index(i)]


@formula
def plane_minimum(mask, k, j, i, wy, wx):
    """The least of the corners in a plane that have a weight in a bilinear value."""
    j1, i1 = j + int32(wy > ZERO), i + int32(wx > ZERO)
    j0, i0 = clamp(j, mask.shape[1]), clamp(i, mask.shape[2])
    j1, i1 = clamp(j1, mask.shape[1]), clamp(i1, mask.shape[2])
    return min(min(mask[k, j0, i0], mask[k, j0, i1]), min(mask[k, j1, i0], mask[k, j1, i1]))


@formula
def least_weight(mask, origin, planes, k, j, i, wz, wy, wx):
    """The least mask of the corners that a value at p is made of: a masked corner makes the value unusable.

    Corners in planes that are not held count as 1, so that ranks take the minimum of parts.
    """
    k0, k1, held0, held1 = corner_planes(mask, origin, planes, k)
    low = plane_minimum(mask, k0, j, i, wy, wx) if held0 > ZERO else ONE
    high = plane_minimum(mask, k1, j, i, wy, wx) if (held1 > ZERO) & (wz > ZERO) else ONE
    return min(low, high)


@voxelwise()
def combine_masks(z, y, x, first, affine, linear, u, origin, planes, fixed_mask, moving_mask, weight):
    """``weight(x) = fixed_mask(x) min moving_mask``, over the corners at p(x); an empty (0, 0, 0) mask is 1 everywhere.

    Of no meaning where p is out of the domain. Arguments as in ``sample``.
    """
    w = ONE
    if moving_mask.shape[0] > 0:
        k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
        w = least_weight(moving_mask, origin, planes, k, j, i, wz, wy, wx)
    if fixed_mask.shape[0] > 0:
        w *= fixed_mask[z, y, x]
    weight[z, y, x] = w


@voxelwise()
def lower_weight(z, y, x, first, affine, linear, u, origin, planes, mask, weight):
    """Lower ``weight`` to the least of the corners at p(x) that lie in the shard ``mask``. Arguments as in ``sample``."""
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    weight[z, y, x] = min(weight[z, y, x], least_weight(mask, origin, planes, k, j, i, wz, wy, wx))


@formula
def jacobian_transpose(line, linear, r, dz, dy, dx):
    """Component ``line`` of r S^T (dz, dy, dx); where r is 0 it is 0, never -0."""
    return ZERO + r * (linear[line] * dz + linear[3 + line] * dy + linear[6 + line] * dx)


@jacobian_transpose.on_cuda
def _turned() -> Callable[..., Any]:
    from daskreg.kernels.sampling.cuda import jacobian_transpose_on_cuda

    return jacobian_transpose_on_cuda


@voxelwise(cooperative="sampling.cuda.pull_back")
def pull_back(z, y, x, first, affine, linear, u, origin, planes, image, slope, g):
    """``g = S^T (slope grad image(p))``: the gradient with respect to u from the gradient with respect to moved.

    slope: (Z, Y, X) float32, dC/dmoved, 0 outside the domain;  g: (3, Z, Y, X) float32;  other arguments as in ``sample``
    """
    r = slope[z, y, x]
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    dz, dy, dx = trilinear_gradient(image, origin, planes, k, j, i, wz, wy, wx)
    g[index(0), z, y, x] = jacobian_transpose(0, linear, r, dz, dy, dx)
    g[index(1), z, y, x] = jacobian_transpose(1, linear, r, dz, dy, dx)
    g[index(2), z, y, x] = jacobian_transpose(2, linear, r, dz, dy, dx)


@voxelwise(sums=6)
def affine_sums(z, y, x, first, affine, linear, u, origin, planes, image, slope):
    """Row sums of ``slope grad image(p)`` and of its product with x; with the z and y of the row they give dC/dA and dC/dt.

    Returns (dt_z, dt_y, dt_x, x dt_z, x dt_y, x dt_x). Arguments as in ``pull_back``.
    """
    r = slope[z, y, x]
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    dz, dy, dx = trilinear_gradient(image, origin, planes, k, j, i, wz, wy, wx)
    along = float32(int32(x))
    return r * dz, r * dy, r * dx, along * (r * dz), along * (r * dy), along * (r * dx)


@voxelwise()
def mark_domain(z, y, x, first, affine, linear, u, planes, domain, image, moved):
    """``moved = 0`` where p is in the domain, else NaN: the start of a sum over shards. Arguments as in ``sample``."""
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    moved[z, y, x] = ZERO if in_domain(image, planes, domain, k, j, i, wz, wy, wx) else NAN


@voxelwise()
def add_value(z, y, x, first, affine, linear, u, origin, planes, image, moved):
    """Add the contribution of the shard ``image`` to the trilinear value at p to ``moved``. Arguments as in ``sample``."""
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    moved[z, y, x] += trilinear(image, origin, planes, k, j, i, wz, wy, wx)


@voxelwise()
def add_value_and_gradient(z, y, x, first, affine, linear, u, origin, planes, image, moved, g):
    """Add the shard's contributions to the value and to grad image at p to ``moved`` and to ``g`` (3, Z, Y, X)."""
    if moved[z, y, x] == moved[z, y, x]:  # in the domain
        k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
        moved[z, y, x] += trilinear(image, origin, planes, k, j, i, wz, wy, wx)
        dz, dy, dx = trilinear_gradient(image, origin, planes, k, j, i, wz, wy, wx)
        g[index(0), z, y, x] += dz
        g[index(1), z, y, x] += dy
        g[index(2), z, y, x] += dx


@voxelwise()
def apply_jacobian_transpose(z, y, x, linear, slope, g):
    """``g = S^T (slope g)`` in place: ``pull_back`` where g already contains grad image."""
    r, dz, dy, dx = slope[z, y, x], g[index(0), z, y, x], g[index(1), z, y, x], g[index(2), z, y, x]
    g[index(0), z, y, x] = jacobian_transpose(0, linear, r, dz, dy, dx)
    g[index(1), z, y, x] = jacobian_transpose(1, linear, r, dz, dy, dx)
    g[index(2), z, y, x] = jacobian_transpose(2, linear, r, dz, dy, dx)


@voxelwise(sums=6)
def gradient_sums(z, y, x, slope, g):
    """``affine_sums`` where g already contains grad image."""
    r, dz, dy, dx = slope[z, y, x], g[index(0), z, y, x], g[index(1), z, y, x], g[index(2), z, y, x]
    along = float32(int32(x))
    return r * dz, r * dy, r * dx, along * (r * dz), along * (r * dy), along * (r * dx)


@voxelwise(sums=2, maxima=True)
def plane_range(z, y, x, first, affine, linear, u):
    """Row maxima of (p_z, -p_z), in moving voxels: the planes of the moving image that a block reads."""
    gz, gy, gx = int64(z) + int64(first), int64(y), int64(x)
    if u is None:
        k, w = affine_coordinate(0, gz, gy, gx, affine)
    else:
        k, w = displaced_coordinate(
            0, gz, gy, gx, affine, linear, u[index(0), z, y, x], u[index(1), z, y, x], u[index(2), z, y, x]
        )
    at = float32(k) + w
    return at, -at

"""The composite implicit sampler: ``moved(x) = M(A x + t + S u(x))``; neither grid nor p is ever stored (method, section 2).

A x + t is formed from global indices in 64-bit fixed point (units of 2^-32 voxel), exactly and whatever the block, and split
into whole and fraction; float32 would lose 1e-3 voxel at index 30 000. There is no branch: interior and rim compute alike, and a
CPU's vector units can gather.
"""

import math

from numba import float32, int32, int64

from daskreg.kernels.launch import formula, voxelwise

index = int64  # replaced by the launcher
ONE, NIL, HALF = float32(1), float32(0), float32(0.5)
UNIT = float32(2.0**-24)  # 24 bits of the fraction are what a float32 holds
NAN = float32(math.nan)


@formula
def exactly(line, z, y, x, affine):
    """Component ``line`` of A x + t as whole voxels and the rest: (int32, float32 in [0, 1])."""
    fixed = affine[4 * line + 0] * z + affine[4 * line + 1] * y + affine[4 * line + 2] * x + affine[4 * line + 3]
    return int32(fixed >> int64(32)), float32((fixed >> int64(8)) & int64(0xFFFFFF)) * UNIT


@formula
def displaced(line, z, y, x, affine, linear, uz, uy, ux):
    """Component ``line`` of A x + t + S u, likewise."""
    whole, rest = exactly(line, z, y, x, affine)
    rest += linear[3 * line + 0] * uz + linear[3 * line + 1] * uy + linear[3 * line + 2] * ux
    more = math.floor(rest)
    return whole + int32(more), rest - float32(more)


@formula
def point(z, y, x, first, affine, linear, u):
    """p(x) = A x + t + S u(x) as (k, j, i, wz, wy, wx)."""
    uz, uy, ux = u[index(0), z, y, x], u[index(1), z, y, x], u[index(2), z, y, x]
    gz, gy, gx = int64(z) + int64(first), int64(y), int64(x)
    k, wz = displaced(0, gz, gy, gx, affine, linear, uz, uy, ux)
    j, wy = displaced(1, gz, gy, gx, affine, linear, uz, uy, ux)
    i, wx = displaced(2, gz, gy, gx, affine, linear, uz, uy, ux)
    return k, j, i, wz, wy, wx


@formula
def affine_point(z, y, x, first, affine):
    """A x + t as (k, j, i, wz, wy, wx)."""
    gz, gy, gx = int64(z) + int64(first), int64(y), int64(x)
    k, wz = exactly(0, gz, gy, gx, affine)
    j, wy = exactly(1, gz, gy, gx, affine)
    i, wx = exactly(2, gz, gy, gx, affine)
    return k, j, i, wz, wy, wx


@formula
def clamped(i, n):
    """The nearest index of 0 .. n - 1."""
    return index(min(max(i, int32(0)), int32(n) - int32(1)))


@formula
def present(i, n):
    """1 for a voxel of the axis, 0 beyond its ends."""
    return ONE if int32(0) <= i < int32(n) else NIL


@formula
def touches(image, k, j, i):
    """Whether any of the eight corners is a voxel of the image."""
    one = int32(1)
    return (-one <= k < int32(image.shape[0])) & (-one <= j < int32(image.shape[1])) & (-one <= i < int32(image.shape[2]))


@formula
def corners(image, k, j, i):
    """The eight voxels around a point, x fastest; beyond the edge the nearest one, which a zero weight will silence."""
    k0, j0, i0 = clamped(k, image.shape[0]), clamped(j, image.shape[1]), clamped(i, image.shape[2])
    one = int32(1)
    k1, j1, i1 = clamped(k + one, image.shape[0]), clamped(j + one, image.shape[1]), clamped(i + one, image.shape[2])
    return (image[k0, j0, i0], image[k0, j0, i1], image[k0, j1, i0], image[k0, j1, i1],
            image[k1, j0, i0], image[k1, j0, i1], image[k1, j1, i0], image[k1, j1, i1])  # fmt: skip


@formula
def weights_of(i, w, n):
    """Weights of the two voxels around a point on an axis, 0 beyond its ends."""
    return (ONE - w) * present(i, n), w * present(i + int32(1), n)


@formula
def trilinear(image, k, j, i, wz, wy, wx):
    """Value at whole (k, j, i) + fraction w; the products of the two planes along z are what shards of planes add up."""
    a, b, c, d, e, f, g, h = corners(image, k, j, i)
    z0, z1 = weights_of(k, wz, image.shape[0])
    y0, y1 = weights_of(j, wy, image.shape[1])
    x0, x1 = weights_of(i, wx, image.shape[2])
    plane0 = y0 * (x0 * a + x1 * b) + y1 * (x0 * c + x1 * d)
    plane1 = y0 * (x0 * e + x1 * f) + y1 * (x0 * g + x1 * h)
    return z0 * plane0 + z1 * plane1


@formula
def trilinear_gradient(image, k, j, i, wz, wy, wx):
    """Derivatives of ``trilinear`` along z, y, x, in intensity a voxel."""
    a, b, c, d, e, f, g, h = corners(image, k, j, i)
    z0, z1 = weights_of(k, wz, image.shape[0])
    y0, y1 = weights_of(j, wy, image.shape[1])
    x0, x1 = weights_of(i, wx, image.shape[2])
    one = int32(1)
    pz0, pz1 = present(k, image.shape[0]), present(k + one, image.shape[0])
    py0, py1 = present(j, image.shape[1]), present(j + one, image.shape[1])
    px0, px1 = present(i, image.shape[2]), present(i + one, image.shape[2])
    row00, row01, row10, row11 = x0 * a + x1 * b, x0 * c + x1 * d, x0 * e + x1 * f, x0 * g + x1 * h
    dz = pz1 * (y0 * row10 + y1 * row11) - pz0 * (y0 * row00 + y1 * row01)
    dy = z0 * (py1 * row01 - py0 * row00) + z1 * (py1 * row11 - py0 * row10)
    dx0 = y0 * (px1 * b - px0 * a) + y1 * (px1 * d - px0 * c)
    dx1 = y0 * (px1 * f - px0 * e) + y1 * (px1 * h - px0 * g)
    return dz, dy, z0 * dx0 + z1 * dx1


@voxelwise()
def sample(z, y, x, first, affine, linear, u, image, moved):
    """``moved(x) = image(A x + t + S u(x))``, NaN out of domain.

    first: plane of the global grid that is z = 0 here (int);  affine: 12 int64, rows of (A t), units of 2^-32 voxel;
    linear: S, 9 float32;  u: (3, Z, Y, X) float32, voxels;  image: (Z', Y', X') float32;  moved: (Z, Y, X) float32
    """
    k, j, i, wz, wy, wx = point(z, y, x, first, affine, linear, u)
    moved[z, y, x] = trilinear(image, k, j, i, wz, wy, wx) if touches(image, k, j, i) else NAN


@voxelwise()
def sample_nearest(z, y, x, first, affine, linear, u, image, moved):
    """As ``sample``, but the value of the nearest voxel (half goes up) and 0 out of the image; any dtype."""
    k, j, i, wz, wy, wx = point(z, y, x, first, affine, linear, u)
    k, j, i = k + int32(wz >= HALF), j + int32(wy >= HALF), i + int32(wx >= HALF)
    if 0 <= k < image.shape[0] and 0 <= j < image.shape[1] and 0 <= i < image.shape[2]:
        moved[z, y, x] = image[index(k), index(j), index(i)]


@voxelwise()
def weigh(z, y, x, first, affine, linear, u, fixed_mask, moving_mask, weight):
    """``weight(x) = fixed_mask(x) moving_mask(p(x))``; an empty (0, 0, 0) mask is 1 everywhere."""
    w = ONE
    if moving_mask.shape[0] > 0:
        k, j, i, wz, wy, wx = point(z, y, x, first, affine, linear, u)
        w = trilinear(moving_mask, k, j, i, wz, wy, wx)
    if fixed_mask.shape[0] > 0:
        w *= fixed_mask[z, y, x]
    weight[z, y, x] = w


@voxelwise()
def pull_back(z, y, x, first, affine, linear, u, image, slope, g):
    """``g = S^T (slope grad image(p))``: the gradient with respect to u from the one with respect to moved.

    slope: (Z, Y, X) float32, dC/dmoved, 0 out of domain;  g: (3, Z, Y, X) float32;  the rest as in ``sample``
    """
    r = slope[z, y, x]
    k, j, i, wz, wy, wx = point(z, y, x, first, affine, linear, u)
    dz, dy, dx = trilinear_gradient(image, k, j, i, wz, wy, wx)
    g[index(0), z, y, x] = r * (linear[0] * dz + linear[3] * dy + linear[6] * dx)
    g[index(1), z, y, x] = r * (linear[1] * dz + linear[4] * dy + linear[7] * dx)
    g[index(2), z, y, x] = r * (linear[2] * dz + linear[5] * dy + linear[8] * dx)


@voxelwise()
def sample_affine(z, y, x, first, affine, image, moved):
    """``moved(x) = image(A x + t)``, NaN out of domain; arguments as in ``sample``."""
    k, j, i, wz, wy, wx = affine_point(z, y, x, first, affine)
    moved[z, y, x] = trilinear(image, k, j, i, wz, wy, wx) if touches(image, k, j, i) else NAN


@voxelwise()
def weigh_affine(z, y, x, first, affine, fixed_mask, moving_mask, weight):
    """As ``weigh``, at A x + t."""
    w = ONE
    if moving_mask.shape[0] > 0:
        k, j, i, wz, wy, wx = affine_point(z, y, x, first, affine)
        w = trilinear(moving_mask, k, j, i, wz, wy, wx)
    if fixed_mask.shape[0] > 0:
        w *= fixed_mask[z, y, x]
    weight[z, y, x] = w


@voxelwise(sums=6)
def affine_sums(z, y, x, first, affine, image, slope):
    """Row sums of ``slope grad image(A x + t)``, and of the same times x: with the row's z and y, all of dC/dA and dC/dt.

    Returns (dt_z, dt_y, dt_x, x dt_z, x dt_y, x dt_x); arguments as in ``pull_back``, without displacement.
    """
    r = slope[z, y, x]
    k, j, i, wz, wy, wx = affine_point(z, y, x, first, affine)
    dz, dy, dx = trilinear_gradient(image, k, j, i, wz, wy, wx)
    along = float32(int32(x))
    return r * dz, r * dy, r * dx, along * (r * dz), along * (r * dy), along * (r * dx)

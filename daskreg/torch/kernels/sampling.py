"""Sampling of batches of images at points given by a displacement, a grid or an affine map, and the derivatives.

Every axis gives the two voxels around a point, their weights, and the derivatives of the weights; all borders differ in these
alone. A displacement has components z, y, x in voxels of the image; a grid is PyTorch's, (B, Z, Y, X, 3) in x, y, z from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel, voxelwise
from daskreg.kernels.intrinsics.arithmetic import floor_int32

index = int64  # replaced by the launcher
ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)
# where points come from; AFFINE: A (x + u) + t, AFFINE_FIRST: A x + t + u, AFFINE_ALONE: A x + t
DISPLACEMENT, GRID, AFFINE, AFFINE_FIRST, AFFINE_ALONE = range(5)
ZEROS, BORDER, REFLECT_CENTERS, REFLECT_EDGES = range(4)


@formula
def reflected(p, n, border):
    """A coordinate reflected into the axis, and the sign of its derivative; about the outermost centres, or edges, of voxels."""
    low = ZERO if border == REFLECT_CENTERS else -HALF
    span = float32(int32(n) - int32(1)) if border == REFLECT_CENTERS else float32(int32(n))
    sign = ONE
    distance = p - low
    if distance < ZERO:
        distance, sign = -distance, -ONE
    if span <= ZERO:
        return p * ZERO, ZERO
    turns = floor_int32(distance / span)
    rest = distance - float32(turns) * span
    if turns % int32(2) != int32(0):
        rest, sign = span - rest, -sign
    return rest + low, sign


@formula
def bordered(p, n, border):
    """A coordinate as the border treats it, and its derivative: 0 where it is clamped."""
    slope = ONE
    if border >= REFLECT_CENTERS:
        p, slope = reflected(p, n, border)
    if border != ZEROS:
        top = float32(int32(n) - int32(1))
        slope = slope if (p > ZERO) & (p < top) else ZERO
        p = min(max(p, p * ZERO), p * ZERO + top)
    return p, slope


@formula
def rounded(p):
    """The nearest integer, the even one of two, as int32."""
    up = floor_int32(p + HALF)
    return up - int32(1) if (float32(up) - p == HALF) & (up % int32(2) != int32(0)) else up


@formula
def around(p, n, border, nearest):
    """Of a coordinate on an axis of n voxels: two indices, their weights, and the derivatives of the weights."""
    p, slope = bordered(p, n, border)
    last = int32(n) - int32(1)
    p = min(max(p, p * ZERO - float32(2)), p * ZERO + float32(last + int32(2)))
    i = rounded(p) if nearest else floor_int32(p)
    w = p - float32(i)
    low = ONE if (i >= int32(0)) & (i <= last) else ZERO
    high = ONE if (i >= -int32(1)) & (i < last) else ZERO
    if nearest:
        w, slope, high = w * ZERO, ZERO, ZERO
    i0 = index(min(max(i, int32(0)), last))
    i1 = index(min(max(i + int32(1), int32(0)), last))
    return i0, i1, (ONE - w) * low, w * high, -slope * low, slope * high


@formula
def component(line, b, z, y, x, depth, mode, u):
    """Component ``line`` (z, y, x) of u at a voxel."""
    if mode == GRID:
        return u[index(b * depth + z), y, index(index(3) * x + index(2 - line))]
    return u[index((b * index(3) + index(line)) * depth + z), y, x]


@formula
def coordinate(line, b, z, y, x, mode, extent, scale, uz, uy, ux, affine):
    """Component ``line`` of the point p(x), in voxels of the image; ``extent``: of the image along this axis."""
    fz, fy, fx = float32(int32(z)), float32(int32(y)), float32(int32(x))
    own, at = (uz, fz) if line == 0 else ((uy, fy) if line == 1 else (ux, fx))
    if mode == DISPLACEMENT:
        return at + own
    if mode == GRID:
        return scale * own + HALF * float32(int32(extent) - int32(1))
    r = 4 * line
    if mode == AFFINE:
        fz, fy, fx = fz + uz, fy + uy, fx + ux
        own = own * ZERO
    return affine[b, r] * fz + affine[b, r + 1] * fy + affine[b, r + 2] * fx + affine[b, r + 3] + own


@formula
def displacement_at(b, z, y, x, depth, mode, u):
    """The three components of u at a voxel; 0 for an affine map alone."""
    if mode == AFFINE_ALONE:
        none = u[index(0), index(0), index(0)] * ZERO
        return none, none, none
    uz = component(0, b, z, y, x, depth, mode, u)
    return uz, component(1, b, z, y, x, depth, mode, u), component(2, b, z, y, x, depth, mode, u)


@formula
def corners(b, z, y, x, depth, planes, mode, border, nearest, sz, sy, sx, uz, uy, ux, affine, image):
    """``around`` for the three axes of p(x)."""
    ny, nx = image.shape[1], image.shape[2]
    pz = coordinate(0, b, z, y, x, mode, planes, sz, uz, uy, ux, affine)
    py = coordinate(1, b, z, y, x, mode, ny, sy, uz, uy, ux, affine)
    px = coordinate(2, b, z, y, x, mode, nx, sx, uz, uy, ux, affine)
    return around(pz, planes, border, nearest), around(py, ny, border, nearest), around(px, nx, border, nearest)


@formula
def interpolate(image, base, at_z, at_y, at_x):
    """The value between the eight voxels, ``base``: the first plane of the channel."""
    k0, k1, z0, z1, _, _ = at_z
    j0, j1, y0, y1, _, _ = at_y
    i0, i1, x0, x1, _, _ = at_x
    k0, k1 = index(base + k0), index(base + k1)
    plane0 = y0 * (x0 * image[k0, j0, i0] + x1 * image[k0, j0, i1]) + y1 * (x0 * image[k0, j1, i0] + x1 * image[k0, j1, i1])
    plane1 = y0 * (x0 * image[k1, j0, i0] + x1 * image[k1, j0, i1]) + y1 * (x0 * image[k1, j1, i0] + x1 * image[k1, j1, i1])
    return z0 * plane0 + z1 * plane1


@formula
def value_and_slopes(image, base, at_z, at_y, at_x):
    """``interpolate``, and its derivatives with respect to the point."""
    k0, k1, z0, z1, dz0, dz1 = at_z
    j0, j1, y0, y1, dy0, dy1 = at_y
    i0, i1, x0, x1, dx0, dx1 = at_x
    k0, k1 = index(base + k0), index(base + k1)
    a, b, c, d = image[k0, j0, i0], image[k0, j0, i1], image[k0, j1, i0], image[k0, j1, i1]
    e, f, g, h = image[k1, j0, i0], image[k1, j0, i1], image[k1, j1, i0], image[k1, j1, i1]
    r00, r01, r10, r11 = x0 * a + x1 * b, x0 * c + x1 * d, x0 * e + x1 * f, x0 * g + x1 * h
    p0, p1 = y0 * r00 + y1 * r01, y0 * r10 + y1 * r11
    along_y = z0 * (dy0 * r00 + dy1 * r01) + z1 * (dy0 * r10 + dy1 * r11)
    along_x = z0 * (y0 * (dx0 * a + dx1 * b) + y1 * (dx0 * c + dx1 * d)) + z1 * (
        y0 * (dx0 * e + dx1 * f) + y1 * (dx0 * g + dx1 * h)
    )
    return z0 * p0 + z1 * p1, dz0 * p0 + dz1 * p1, along_y, along_x


@formula
def add_to(array, k, j, i, value):
    """``array[k, j, i] += value``."""
    array[k, j, i] += value


@add_to.on_cuda
def _add_atomically() -> Callable[..., None]:
    """The same for all threads of a GPU; the order of additions, and so the last bits, vary."""
    from numba import cuda

    def add_atomically(array, k, j, i, value):
        cuda.atomic.add(array, (k, j, i), value)

    return add_atomically


@formula
def scatter(image, base, at_z, at_y, at_x, value):
    """Add ``value`` times its weight to each of the eight voxels."""
    k0, k1, z0, z1, _, _ = at_z
    j0, j1, y0, y1, _, _ = at_y
    i0, i1, x0, x1, _, _ = at_x
    k0, k1 = index(base + k0), index(base + k1)
    add_to(image, k0, j0, i0, value * (z0 * y0 * x0))
    add_to(image, k0, j0, i1, value * (z0 * y0 * x1))
    add_to(image, k0, j1, i0, value * (z0 * y1 * x0))
    add_to(image, k0, j1, i1, value * (z0 * y1 * x1))
    add_to(image, k1, j0, i0, value * (z1 * y0 * x0))
    add_to(image, k1, j0, i1, value * (z1 * y0 * x1))
    add_to(image, k1, j1, i0, value * (z1 * y1 * x0))
    add_to(image, k1, j1, i1, value * (z1 * y1 * x1))


@formula
def pulled_back(line, b, mode, scale, affine, gz, gy, gx):
    """Component ``line`` of the derivative with respect to u from that with respect to the point."""
    if mode == AFFINE:
        return affine[b, line] * gz + affine[b, line + 4] * gy + affine[b, line + 8] * gx
    own = gz if line == 0 else (gy if line == 1 else gx)
    return scale * own if mode == GRID else own


@formula
def store_component(line, b, z, y, x, depth, mode, accumulate, value, field):
    """Write or add a component of the derivative with respect to u."""
    k = index(b * depth + z) if mode == GRID else index((b * index(3) + index(line)) * depth + z)
    i = index(index(3) * x + index(2 - line)) if mode == GRID else x
    field[k, y, i] = value + (field[k, y, i] if accumulate else value * ZERO)


@formula
def store_pulled_back(b, z, y, x, depth, mode, accumulate, sz, sy, sx, affine, gz, gy, gx, field):
    """Write or add the derivative with respect to u."""
    for_z, for_y, for_x = (
        pulled_back(0, b, mode, sz, affine, gz, gy, gx),
        pulled_back(1, b, mode, sy, affine, gz, gy, gx),
        pulled_back(2, b, mode, sx, affine, gz, gy, gx),
    )
    store_component(0, b, z, y, x, depth, mode, accumulate, for_z, field)
    store_component(1, b, z, y, x, depth, mode, accumulate, for_y, field)
    store_component(2, b, z, y, x, depth, mode, accumulate, for_x, field)


@voxelwise()
def sample_batch(p, y, x, depth, planes, channels, first, last, mode, border, nearest, plus, sz, sy, sx, u, affine, image, moved):
    """``moved(x) = image(p(x))`` for the channels ``first .. last - 1``, plus u(x) if ``plus`` (a composition).

    depth, planes: of ``moved`` and of the image;  sz, sy, sx: voxels per unit of a grid;  u: (3 B Z, Y, X), or (B Z, Y, 3 X) for
    ``GRID``;  affine: (B, 12), rows of (A t);  image: (B C Z', Y', X');  moved: (B (last - first) Z, Y, X)
    """
    b = index(index(p) // index(depth))
    z = index(index(p) - b * index(depth))
    uz, uy, ux = displacement_at(b, z, y, x, index(depth), mode, u)
    at_z, at_y, at_x = corners(b, z, y, x, index(depth), planes, mode, border, nearest, sz, sy, sx, uz, uy, ux, affine, image)
    for c in range(first, last):
        base = index((b * index(channels) + index(c)) * index(planes))
        value = interpolate(image, base, at_z, at_y, at_x)
        if plus:
            value += uz if c == 0 else (uy if c == 1 else ux)
        moved[index((b * index(last - first) + index(c - first)) * index(depth) + z), y, x] = value


@voxelwise()
def sample_batch_backward(
    p, y, x, depth, planes, channels, first, last, mode, border, nearest, plus, accumulate, to_u, to_image,
    sz, sy, sx, u, affine, image, slope, field, scattered,
):  # fmt: skip
    """From ``slope``, the derivative with respect to ``moved``: those with respect to u (if ``to_u``) and image (``to_image``).

    accumulate: add to ``field``, of the shape of u, instead of writing it;  scattered: of the shape of the image, added to;
    other arguments as in ``sample_batch``. On a CPU images are scattered by ``scatter_rows``.
    """
    b = index(index(p) // index(depth))
    z = index(index(p) - b * index(depth))
    uz, uy, ux = displacement_at(b, z, y, x, index(depth), mode, u)
    at_z, at_y, at_x = corners(b, z, y, x, index(depth), planes, mode, border, nearest, sz, sy, sx, uz, uy, ux, affine, image)
    gz, gy, gx = uz * ZERO, uz * ZERO, uz * ZERO
    for c in range(first, last):
        r = slope[index((b * index(last - first) + index(c - first)) * index(depth) + z), y, x]
        base = index((b * index(channels) + index(c)) * index(planes))
        if to_u:
            _, dz, dy, dx = value_and_slopes(image, base, at_z, at_y, at_x)
            gz, gy, gx = gz + r * dz, gy + r * dy, gx + r * dx
            if plus:
                gz, gy, gx = gz + (r if c == 0 else r * ZERO), gy + (r if c == 1 else r * ZERO), gx + (r if c == 2 else r * ZERO)
        if to_image:
            scatter(scattered, base, at_z, at_y, at_x, r)
    if to_u:
        store_pulled_back(b, z, y, x, index(depth), mode, accumulate, sz, sy, sx, affine, gz, gy, gx, field)


@row_kernel(items=lambda depth, *others: len(others[-2]) // depth)
def scatter_rows(
    begin, end, depth, ny, nx, planes, channels, first, last, mode, border, nearest, sz, sy, sx, u, affine, slope, scattered
):
    """The derivative with respect to the image on a CPU: a thread per channel of a batch element, so the result is always the
    same. Arguments as in ``sample_batch_backward``.
    """
    width = last - first
    for bc in range(begin, end):
        b = index(bc // width)
        c = index(bc % width)
        base = index((b * index(channels) + index(first) + c) * index(planes))
        for z0 in range(depth):
            for y0 in range(ny):
                for x0 in range(nx):
                    z, y, x = index(z0), index(y0), index(x0)
                    uz, uy, ux = displacement_at(b, z, y, x, index(depth), mode, u)
                    at_z, at_y, at_x = corners(
                        b, z, y, x, index(depth), planes, mode, border, nearest, sz, sy, sx, uz, uy, ux, affine, scattered
                    )
                    r = slope[index((b * index(width) + c) * index(depth) + z), y, x]
                    scatter(scattered, base, at_z, at_y, at_x, r)


@formula
def affine_terms(mode, z, y, x, uz, uy, ux, gz, gy, gx):
    """The derivatives with respect to A and t at one voxel, rows of (A t)."""
    fz, fy, fx = float32(int32(z)), float32(int32(y)), float32(int32(x))
    if mode == AFFINE:
        fz, fy, fx = fz + uz, fy + uy, fx + ux
    return (gz * fz, gz * fy, gz * fx, gz, gy * fz, gy * fy, gy * fx, gy, gx * fz, gx * fy, gx * fx, gx)


@voxelwise(sums=12)
def affine_sums_batch(p, y, x, depth, planes, channels, first, last, mode, border, sz, sy, sx, u, affine, image, slope):
    """Row sums of the derivative with respect to the affine map. Arguments as in ``sample_batch_backward``."""
    b = index(index(p) // index(depth))
    z = index(index(p) - b * index(depth))
    uz, uy, ux = displacement_at(b, z, y, x, index(depth), mode, u)
    at_z, at_y, at_x = corners(b, z, y, x, index(depth), planes, mode, border, False, sz, sy, sx, uz, uy, ux, affine, image)
    gz, gy, gx = uz * ZERO, uz * ZERO, uz * ZERO
    for c in range(first, last):
        r = slope[index((b * index(last - first) + index(c - first)) * index(depth) + z), y, x]
        base = index((b * index(channels) + index(c)) * index(planes))
        _, dz, dy, dx = value_and_slopes(image, base, at_z, at_y, at_x)
        gz, gy, gx = gz + r * dz, gy + r * dy, gx + r * dx
    return affine_terms(mode, z, y, x, uz, uy, ux, gz, gy, gx)


@voxelwise(sums=1)
def squares_of_samples(p, y, x, depth, planes, channels, mode, border, to_u, factor, sz, sy, sx, u, affine, image, fixed, field):
    """Row sums of ``(fixed - image(p))^2`` over all channels, and ``field``: ``factor`` times their derivative with respect to u.

    fixed: (B C Z, Y, X);  other arguments as in ``sample_batch_backward``
    """
    b = index(index(p) // index(depth))
    z = index(index(p) - b * index(depth))
    uz, uy, ux = displacement_at(b, z, y, x, index(depth), mode, u)
    at_z, at_y, at_x = corners(b, z, y, x, index(depth), planes, mode, border, False, sz, sy, sx, uz, uy, ux, affine, image)
    gz, gy, gx, total = uz * ZERO, uz * ZERO, uz * ZERO, uz * ZERO
    for c in range(channels):
        base = index((b * index(channels) + index(c)) * index(planes))
        value, dz, dy, dx = value_and_slopes(image, base, at_z, at_y, at_x)
        r = value - fixed[index((b * index(channels) + index(c)) * index(depth) + z), y, x]
        total += r * r
        r = r * factor
        gz, gy, gx = gz + r * dz, gy + r * dy, gx + r * dx
    if to_u:
        store_pulled_back(b, z, y, x, index(depth), mode, False, sz, sy, sx, affine, gz, gy, gx, field)
    return (total,)

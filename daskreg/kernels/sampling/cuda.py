"""Composite implicit sampling on a GPU: each thread computes a column of voxels along z, so A x + t costs one addition per voxel.

The results are those of ``sampling.cpu``; arrays are flat and every rounding is explicit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32, int32, int64, uint32, uint64

from daskreg.kernels.compiler.configuration import block_size, multiprocessors, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import box, extent
from daskreg.kernels.intrinsics.arithmetic import clamp, dot3, floor_int32, leading_fraction, lerp, rounded_product
from daskreg.kernels.intrinsics.half import as_float32, half_constants, identity, to_bfloat16
from daskreg.kernels.intrinsics.memory import load_cell
from daskreg.kernels.sampling.cpu import CENTERS, EVERYWHERE

ONE, ZERO, HALF, NAN = float32(1), float32(0), float32(0.5), float32(float("nan"))
UNIT = float32(2.0**-24)  # a float32 holds 24 bits of the fraction
TILE = block_size(4, least=2), block_size(64)  # threads along y and x
RESIDENT_BLOCKS, MAX_DEPTH = 4, 16  # blocks per multiprocessor, most planes per block


def launch_grid(n: Sequence[Any]) -> tuple[np.uint32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes per block, blocks and threads of a column kernel, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = TILE
    across, down = -(-nx // tx), -(-ny // ty)
    depth = min(MAX_DEPTH, planes_per_block(nz, across * down, RESIDENT_BLOCKS))
    return np.uint32(depth), (across, down, -(-nz // depth)), (tx, ty, 1)


@formula
def sampling_coordinate(coordinate, sz, sy, sx, uz, uy, ux):
    """A component of A x + t (64-bit fixed point) + S u as a whole number and a fraction."""
    rest = float32(leading_fraction(coordinate)) * UNIT + dot3(sz, sy, sx, uz, uy, ux)
    carry = floor_int32(rest)
    return int32(int32(coordinate >> int64(32)) + carry), rest - float32(carry)


@formula
def within(k, w, n, domain):
    """``sampling.cpu.within``."""
    margin = HALF if domain != int32(CENTERS) or n == int32(1) else ZERO
    one = int32(1)
    above = (k >= int32(0)) | ((k == -one) & (w >= ONE - margin))
    last = int32(n - one)
    below = (k < last) | ((k == last) & ((w <= ZERO) | (w < margin)))
    return (above & below) | (domain == int32(EVERYWHERE))


@formula
def in_domain(size, point):
    """Whether a point lies in the domain of the whole image; size: see ``column_body``."""
    k, j, i, wz, wy, wx = point
    rows = within(j, wy, size[3], size[5]) & within(i, wx, size[4], size[5])
    return within(k, wz, size[0], size[5]) & rows


@formula
def flat_voxel(image, rows, cols, k, j, i):
    """A voxel of a flat image."""
    return as_float32(image[uint64(uint32(k)) * uint64(uint32(rows * cols)) + uint64(uint32(j * cols + i))])


@formula
def is_interior(planes, rows, cols, k, j, i):
    """Whether all eight corners are voxels of the image."""
    one = int32(1)
    return (uint32(k) < uint32(planes - one)) & (uint32(j) < uint32(rows - one)) & (uint32(i) < uint32(cols - one))


@formula
def flat_corners(image, size, k, j, i):
    """The eight voxels around a point, x fastest; beyond the faces of the image the nearest voxel.

    All planes that a point in the domain reads are held, so that the faces of what is held are those of the whole image.
    size: see ``column_body``.
    """
    planes, rows, cols, one = size[2], size[3], size[4], int32(1)
    here = int32(k - size[1])
    if is_interior(planes, rows, cols, here, j, i):
        plane = uint64(uint32(rows * cols))
        at = uint64(uint32(here)) * plane + uint64(uint32(j * cols + i))
        a, b, c, d, e, f, g, h = load_cell(image, at, uint64(uint32(cols)), plane)
        return (as_float32(a), as_float32(b), as_float32(c), as_float32(d),
                as_float32(e), as_float32(f), as_float32(g), as_float32(h))  # fmt: skip
    k0, k1, j0, j1 = clamp(here, planes), clamp(int32(here + one), planes), clamp(j, rows), clamp(int32(j + one), rows)
    i0, i1 = clamp(i, cols), clamp(int32(i + one), cols)
    return (flat_voxel(image, rows, cols, k0, j0, i0), flat_voxel(image, rows, cols, k0, j0, i1),
            flat_voxel(image, rows, cols, k0, j1, i0), flat_voxel(image, rows, cols, k0, j1, i1),
            flat_voxel(image, rows, cols, k1, j0, i0), flat_voxel(image, rows, cols, k1, j0, i1),
            flat_voxel(image, rows, cols, k1, j1, i0), flat_voxel(image, rows, cols, k1, j1, i1))  # fmt: skip


@formula
def interpolate(corners, wz, wy, wx):
    """Trilinear value: the contributions of the two planes along z are rounded before they are added."""
    a, b, c, d, e, f, g, h = corners
    plane0, plane1 = lerp(lerp(a, b, wx), lerp(c, d, wx), wy), lerp(lerp(e, f, wx), lerp(g, h, wx), wy)
    return rounded_product(ONE - wz, plane0) + rounded_product(wz, plane1)


@formula
def interpolate_gradient(corners, wz, wy, wx):
    """Trilinear value and its derivatives along z, y, x."""
    a, b, c, d, e, f, g, h = corners
    row00, row01, row10, row11 = lerp(a, b, wx), lerp(c, d, wx), lerp(e, f, wx), lerp(g, h, wx)
    plane0, plane1, vz = lerp(row00, row01, wy), lerp(row10, row11, wy), ONE - wz
    value = rounded_product(vz, plane0) + rounded_product(wz, plane1)
    dy = rounded_product(vz, row01 - row00) + rounded_product(wz, row11 - row10)
    dx = rounded_product(vz, lerp(b - a, d - c, wy)) + rounded_product(wz, lerp(f - e, h - g, wy))
    return value, plane1 - plane0, dy, dx


@formula
def voxel_value(image, k, j, i):
    """A voxel of an image (Z, Y, X), 0 outside."""
    if uint32(k) < uint32(image.shape[0]) and uint32(j) < uint32(image.shape[1]) and uint32(i) < uint32(image.shape[2]):
        return as_float32(image[uint32(k), uint32(j), uint32(i)])
    return ZERO


@formula
def corners(image, k0, k1, j0, j1, i0, i1):
    """The eight voxels of two planes, rows and columns, x fastest, 0 outside the image."""
    a, b = voxel_value(image, k0, j0, i0), voxel_value(image, k0, j0, i1)
    c, d = voxel_value(image, k0, j1, i0), voxel_value(image, k0, j1, i1)
    e, f = voxel_value(image, k1, j0, i0), voxel_value(image, k1, j0, i1)
    g, h = voxel_value(image, k1, j1, i0), voxel_value(image, k1, j1, i1)
    return a, b, c, d, e, f, g, h


@formula
def corner_values(image, origin, planes, k, j, i):
    """The eight voxels around a point of an image (Z, Y, X); those of a plane that is not held are 0."""
    one, first, whole = int32(1), int32(origin), int32(planes)
    rows, cols = int32(image.shape[1]), int32(image.shape[2])
    k0, k1 = clamp(k, whole) - first, clamp(k + one, whole) - first
    return corners(image, k0, k1, clamp(j, rows), clamp(j + one, rows), clamp(i, cols), clamp(i + one, cols))


def displaced_on_cuda(line, z, y, x, affine, linear, uz, uy, ux):
    """``sampling.cpu.displaced_coordinate`` with explicit rounding."""
    coordinate = affine[4 * line + 0] * z + affine[4 * line + 1] * y + affine[4 * line + 2] * x + affine[4 * line + 3]
    return sampling_coordinate(coordinate, linear[3 * line], linear[3 * line + 1], linear[3 * line + 2], uz, uy, ux)


def trilinear_on_cuda(image, origin, planes, k, j, i, wz, wy, wx):
    """``sampling.cpu.trilinear`` with explicit rounding; image: (Z, Y, X)."""
    return interpolate(corner_values(image, origin, planes, k, j, i), wz, wy, wx)


def gradient_on_cuda(image, origin, planes, k, j, i, wz, wy, wx):
    """``sampling.cpu.trilinear_gradient`` with explicit rounding; image: (Z, Y, X)."""
    _, dz, dy, dx = interpolate_gradient(corner_values(image, origin, planes, k, j, i), wz, wy, wx)
    return dz, dy, dx


def displacement_on_cuda(component, k, j, i, wz, wy, wx):
    """``sampling.field.displacement`` with explicit rounding; component: (Z, Y, X)."""
    one = int32(1)
    return interpolate(corners(component, k, k + one, j, j + one, i, i + one), wz, wy, wx)


def jacobian_transpose_on_cuda(line, linear, r, dz, dy, dx):
    """``sampling.cpu.jacobian_transpose`` with explicit rounding."""
    return ZERO + r * dot3(linear[line], linear[3 + line], linear[6 + line], dz, dy, dx)


@formula
def store_value(at, point, linear, size, image, fields, a, b):
    """``moved = image(p)``, NaN outside the domain."""
    k, j, i, wz, wy, wx = point
    value = NAN
    # most points are interior, so this test comes first
    if is_interior(size[2], size[3], size[4], k - size[1], j, i) or in_domain(size, point):
        value = interpolate(flat_corners(image, size, k, j, i), wz, wy, wx)
    fields[0][at] = value
    return a, b


def gradient_store(mixed):
    """Returns a formula that stores ``g = r S^T (dz, dy, dx)``; ``mixed``: g is uint16, the bits of bfloat16."""
    stored = to_bfloat16 if mixed else identity

    @formula
    def turn_into(g, at, linear, r, dz, dy, dx):
        g[0, at] = stored(ZERO + r * dot3(linear[0], linear[3], linear[6], dz, dy, dx))
        g[1, at] = stored(ZERO + r * dot3(linear[1], linear[4], linear[7], dz, dy, dx))
        g[2, at] = stored(ZERO + r * dot3(linear[2], linear[5], linear[8], dz, dy, dx))

    return turn_into


def pull_back_visitor(mixed):
    """Returns the visitor of ``pull_back_columns``; slope and g[0] may be the same memory, unless g is ``mixed``."""
    turn_into = gradient_store(mixed)

    @formula
    def pulled_at(at, point, linear, size, image, fields, a, b):
        k, j, i, wz, wy, wx = point
        slope, g = fields
        r, dz, dy, dx = slope[at], ZERO, ZERO, ZERO
        if r != ZERO:
            _, dz, dy, dx = interpolate_gradient(flat_corners(image, size, k, j, i), wz, wy, wx)
        turn_into(g, at, linear, r, dz, dy, dx)
        return a, b

    return pulled_at


def block_sum(threads):
    """Returns a formula that adds the two counts of all threads of a block to totals (2,) int64."""

    @formula
    def tally(shared, a, b, totals):
        t = uint32(cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x)
        shared[0, t], shared[1, t] = a, b
        cuda.syncthreads()
        half = uint32(threads // 2)
        while half > uint32(0):
            if t < half:
                shared[0, t] += shared[0, t + half]
                shared[1, t] += shared[1, t + half]
            cuda.syncthreads()
            half = uint32(half >> uint32(1))
        if t == uint32(0):
            cuda.atomic.add(totals, 0, shared[0, 0])
            cuda.atomic.add(totals, 1, shared[1, 0])

    return tally


def column_walk(visit, displaced, ahead=True):
    """Returns a formula that calls ``visit`` at the sampling points of a column's planes ``step`` to ``stop``.

    ahead: whether the displacement of the next plane is loaded before a voxel is computed;  other arguments: ``column_body``.
    """
    visitor = visit

    @formula
    def walk(x, y, step, stop, n, first, affine, linear, u, size, image, fields, a, b):
        z = int64(n[0]) + int64(step) + int64(first)
        fz = affine[0] * z + affine[1] * int64(y) + affine[2] * int64(x) + affine[3]
        fy = affine[4] * z + affine[5] * int64(y) + affine[6] * int64(x) + affine[7]
        fx = affine[8] * z + affine[9] * int64(y) + affine[10] * int64(x) + affine[11]
        plane = uint64(n[2]) * uint64(n[3])
        at = plane * (uint64(n[0]) + uint64(step)) + uint64(y) * uint64(n[3]) + uint64(x)
        uz, uy, ux = ZERO, ZERO, ZERO
        if displaced and ahead and step < stop:
            uz, uy, ux = u[0, at], u[1, at], u[2, at]
        while step < stop:
            step = uint32(step + uint32(1))
            next_z, next_y, next_x = ZERO, ZERO, ZERO
            if displaced and not ahead:
                uz, uy, ux = u[0, at], u[1, at], u[2, at]
            elif displaced and step < stop:
                next_z, next_y, next_x = u[0, at + plane], u[1, at + plane], u[2, at + plane]
            k, wz = sampling_coordinate(fz, linear[0], linear[1], linear[2], uz, uy, ux)
            j, wy = sampling_coordinate(fy, linear[3], linear[4], linear[5], uz, uy, ux)
            i, wx = sampling_coordinate(fx, linear[6], linear[7], linear[8], uz, uy, ux)
            a, b = visitor(at, (k, j, i, wz, wy, wx), linear, size, image, fields, a, b)
            fz, fy, fx = fz + affine[0], fy + affine[4], fx + affine[8]
            if ahead:
                uz, uy, ux = next_z, next_y, next_x
            at += plane
        return a, b

    return walk


def column_body(visit, displaced, summed, ahead=True):
    """Body of a kernel whose threads compute columns along z and call ``visit`` at each sampling point; see ``column_walk``.

    Arguments: depth (planes per block; uint32), n (first plane within the arrays, planes, rows, columns; uint32), first (global
    plane at plane 0 of the arrays, int32), affine (12 int64), linear (9 float32), u (3, N) in voxels (not read unless
    ``displaced``), size (planes of the whole image, the plane at ``image[0]``, planes in ``image``, rows, columns, domain;
    int32), image (flat; float32, or uint16 with the bits of float16), fields (of ``visit``), totals (2,) int64.
    """
    walk, count = column_walk(visit, displaced, ahead), TILE[0] * TILE[1]
    tally = block_sum(count)

    def body(depth, n, first, affine, linear, u, size, image, fields, totals):
        x = uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        y = uint32(cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y)
        a, b = int64(0), int64(0)
        if x < n[3] and y < n[2]:
            step = uint32(uint32(cuda.blockIdx.z) * depth)
            stop = min(uint32(step + depth), n[1])
            a, b = walk(x, y, step, stop, n, first, affine, linear, u, size, image, fields, a, b)
        if summed:
            tally(cuda.shared.array((2, count), int64), a, b, totals)

    return body


def tiles_body(visit, tile, begin):
    """Body of a kernel of one block a multiprocessor, each of which computes one tile of ``depth`` planes after another.

    For blocks that keep something in shared memory. tile: rows and columns, threads of a block along y and x;
    begin(arrays, t): called in thread t at the start of a block, returns the fields of ``visit``.
    Other arguments: ``column_body``.
    """
    walk, (ty, tx) = column_walk(visit, True), tile

    def body(depth, n, first, affine, linear, u, size, image, arrays):
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        fields = begin(arrays, uint32(j * uint32(tx) + i))
        across, down = uint32(uint32(n[3] + uint32(tx - 1)) // uint32(tx)), uint32(uint32(n[2] + uint32(ty - 1)) // uint32(ty))
        tiles = uint32(across * down)
        count = uint32(tiles * uint32(uint32(n[1] + uint32(depth - uint32(1))) // depth))
        item = uint32(cuda.blockIdx.x)
        while item < count:
            place, step = uint32(item % tiles), uint32(uint32(item // tiles) * depth)
            x, y = uint32(uint32(place % across) * uint32(tx) + i), uint32(uint32(place // across) * uint32(ty) + j)
            if x < n[3] and y < n[2]:
                walk(x, y, step, min(uint32(step + depth), n[1]), n, first, affine, linear, u, size, image, fields, 0, 0)
            item = uint32(item + uint32(cuda.gridDim.x))

    return body


@cooperative_kernel(launch_bounds=(256, 6))
def sample_columns(displaced):
    """``moved(x) = image(A x + t + S u(x))``, NaN outside the domain; fields (moved,); 20 bytes per voxel."""
    return column_body(store_value, displaced, False)


@cooperative_kernel(launch_bounds=lambda displaced, mixed=False: (256, 6))
def pull_back_columns(displaced, mixed=False):
    """G from dC/dmoved; fields (slope, g); 32 bytes per voxel, 24 if ``mixed``."""
    return column_body(pull_back_visitor(mixed), displaced, False, ahead=False)  # that takes as long


def launch_columns(kernel, constants, box, place, u, image, origin, planes, fields, totals=None, domain=CENTERS):
    """Launch a column kernel on arrays as the plain kernels take them; ``place``: first plane, A and t, S."""
    n = tuple(np.uint32(v) for v in box)
    size = tuple(np.int32(v) for v in (planes, origin, *image.shape, domain))
    first, affine, linear = place
    values = image.reshape(-1)
    u = values.reshape(1, -1) if u is None else u.reshape(3, -1)  # not read without a displacement
    if box[1]:
        sums = values if totals is None else totals
        depth, blocks, threads = launch_grid(n)
        kernel(constants, blocks, threads, depth, n, np.int32(first), affine, linear, u, size, values, fields, sums)


def launch_tiles(kernel, constants, shape, sampling, tile, arrays, shared):
    """Launch a kernel of ``tiles_body``; ``sampling``: see ``similarity.base.Sampling``."""
    n, (_, nz, ny, nx), (ty, tx) = extent(shape), box(shape), tile
    first, affine, linear, u, origin, planes, image = sampling
    size = tuple(np.int32(v) for v in (planes, origin, *image.shape, CENTERS))
    tiles = -(-ny // ty) * -(-nx // tx)
    if nz:
        depth = min(MAX_DEPTH, planes_per_block(nz, tiles, 1))
        blocks = min(multiprocessors(), tiles * -(-nz // depth))
        flat = u.reshape(3, -1), size, image.reshape(-1)
        kernel(constants, (blocks,), (tx, ty), np.uint32(depth), n, np.int32(first), affine, linear, *flat, arrays, shared=shared)


def sample(shape, first, affine, linear, u, origin, planes, domain, image, moved):
    """``sampling.cpu.sample`` on the current device."""
    place, fields = (first, affine, linear), (moved.reshape(-1),)
    launch_columns(sample_columns, (u is not None,), box(shape), place, u, image, origin, planes, fields, domain=domain)


def pull_back(shape, first, affine, linear, u, origin, planes, image, slope, g):
    """``sampling.cpu.pull_back`` on the current device."""
    place, fields = (first, affine, linear), (slope.reshape(-1), g.reshape(3, -1))
    constants = (u is not None, *half_constants(g))
    launch_columns(pull_back_columns, constants, box(shape), place, u, image, origin, planes, fields)

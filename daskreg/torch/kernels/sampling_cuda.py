"""Sampling on a GPU: kernels of ``kernels.sampling`` with constants in place of arguments that say what is computed.

A block of threads owns a tile of the (y, x) plane and moves along z. A voxel is addressed by a 64-bit address of its volume and a
32-bit offset; where all eight voxels around a point are inside, neither indices nor weights are clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32, uint64

from daskreg.kernels.compiler.configuration import SIMULATED, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import floor_int32
from daskreg.kernels.intrinsics.memory import add_beyond, address, beyond, load, store
from daskreg.torch.kernels.sampling import AFFINE, AFFINE_ALONE, BORDER, DISPLACEMENT, GRID, ZEROS, around, bordered

ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)
TILE_X, TILE_Y = block_size(32, least=4), block_size(8, least=2)  # threads of a block that gathers
MAX_DEPTH = 8  # planes of a block, at most
BLOCKS = 16  # per multiprocessor, at least, where there are that many
OFFSET: Any = int if SIMULATED else uint64


def block_depth(volumes: int, shape: tuple[int, int, int], tile: tuple[int, int], processors: int) -> int:
    """Planes of a block of a tile of rows and columns: few where there are few tiles."""
    planes, rows, columns = shape
    tiles = volumes * planes * -(-rows // tile[0]) * -(-columns // tile[1])
    return max(1, min(MAX_DEPTH, planes, tiles // (BLOCKS * processors)))


def blocks(volumes: int, shape: tuple[int, int, int], tile: tuple[int, int], depth: int) -> tuple[int, int, int]:
    """Blocks, x first; those of all planes and volumes are along x."""
    planes, rows, columns = shape
    return volumes * -(-planes // depth) * -(-columns // tile[1]), -(-rows // tile[0]), 1


def resident_blocks(mode: int, border: int, usual: int) -> int:
    """Blocks per multiprocessor whose registers fit: fewer for affine maps, which take twelve, and for reflections."""
    return usual if mode < AFFINE and border <= BORDER else 2


@formula
def block_place(block, columns, planes, depth, width):
    """Volume, first plane and first column of a block."""
    tiles = uint32(uint32(columns + uint32(width - 1)) // uint32(width))
    parts = uint32(uint32(planes + uint32(depth - uint32(1))) // depth)
    column, rest = uint32(block % tiles), uint32(block // tiles)
    volume = uint32(rest // parts)
    return volume, uint32(uint32(rest - uint32(volume * parts)) * depth), uint32(column * uint32(width))


@formula
def affine_rows(mode, affine, b):
    """The affine map of a batch element as twelve numbers."""
    if mode >= AFFINE:
        return (affine[b, 0], affine[b, 1], affine[b, 2], affine[b, 3], affine[b, 4], affine[b, 5],
                affine[b, 6], affine[b, 7], affine[b, 8], affine[b, 9], affine[b, 10], affine[b, 11])  # fmt: skip
    return ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO


@formula
def field_at(mode, u, first, volume, at):
    """U of a voxel; ``first``: the first voxel of the batch element, u: flat."""
    if mode == AFFINE_ALONE:
        return ZERO, ZERO, ZERO
    if mode == GRID:
        where = address(u, first + OFFSET(3) * OFFSET(at))
        return load(where, uint32(2)), load(where, uint32(1)), load(where, uint32(0))
    where = address(u, first)
    return load(where, at), load(address(u, first + volume), at), load(address(u, first + OFFSET(2) * volume), at)


@formula
def sampling_point(mode, z, y, x, uz, uy, ux, n, scale, m):
    """p(x) in voxels of the image; n: extents of the result, then of the image;  m: ``affine_rows``."""
    if mode == GRID:
        return (scale[0] * uz + HALF * float32(int32(n[3]) - int32(1)), scale[1] * uy + HALF * float32(int32(n[4]) - int32(1)),
                scale[2] * ux + HALF * float32(int32(n[5]) - int32(1)))  # fmt: skip
    fz, fy, fx = float32(int32(z)), float32(int32(y)), float32(int32(x))
    if mode == DISPLACEMENT:
        return fz + uz, fy + uy, fx + ux
    if mode == AFFINE:
        fz, fy, fx, uz, uy, ux = fz + uz, fy + uy, fx + ux, ZERO, ZERO, ZERO
    return (m[0] * fz + m[1] * fy + m[2] * fx + m[3] + uz, m[4] * fz + m[5] * fy + m[6] * fx + m[7] + uy,
            m[8] * fz + m[9] * fy + m[10] * fx + m[11] + ux)  # fmt: skip


@formula
def is_interior(k, j, i, n):
    """Whether all eight voxels around a point are inside."""
    one = int32(1)
    return (
        (uint32(k) < uint32(int32(n[3]) - one))
        & (uint32(j) < uint32(int32(n[4]) - one))
        & (uint32(i) < uint32(int32(n[5]) - one))
    )


@formula
def offset(k, j, i, n):
    """The offset of a voxel in its volume."""
    return uint32(uint32(uint32(k) * n[4] + uint32(j)) * n[5] + uint32(i))


@formula
def interior_voxels(where, n, k, j, i):
    """The eight voxels around a point inside, x fastest."""
    at = offset(k, j, i, n)
    a, c = beyond(where, at), beyond(where, uint32(at + n[5]))
    at = uint32(at + uint32(n[4] * n[5]))
    e, g = beyond(where, at), beyond(where, uint32(at + n[5]))
    none, one = uint32(0), uint32(1)
    return load(a, none), load(a, one), load(c, none), load(c, one), load(e, none), load(e, one), load(g, none), load(g, one)


@formula
def voxels_around(where, n, at_z, at_y, at_x):
    """The eight voxels of ``around``."""
    k0, k1, j0, j1, i0, i1 = at_z[0], at_z[1], at_y[0], at_y[1], at_x[0], at_x[1]
    return (load(where, offset(k0, j0, i0, n)), load(where, offset(k0, j0, i1, n)), load(where, offset(k0, j1, i0, n)),
            load(where, offset(k0, j1, i1, n)), load(where, offset(k1, j0, i0, n)), load(where, offset(k1, j0, i1, n)),
            load(where, offset(k1, j1, i0, n)), load(where, offset(k1, j1, i1, n)))  # fmt: skip


@formula
def blended(values, at_z, at_y, at_x):
    """The value between eight voxels."""
    a, b, c, d, e, f, g, h = values
    z0, z1, y0, y1, x0, x1 = at_z[2], at_z[3], at_y[2], at_y[3], at_x[2], at_x[3]
    plane0, plane1 = y0 * (x0 * a + x1 * b) + y1 * (x0 * c + x1 * d), y0 * (x0 * e + x1 * f) + y1 * (x0 * g + x1 * h)
    return z0 * plane0 + z1 * plane1


@formula
def blended_slopes(values, at_z, at_y, at_x):
    """Its derivatives with respect to the point."""
    a, b, c, d, e, f, g, h = values
    _, _, z0, z1, dz0, dz1 = at_z
    _, _, y0, y1, dy0, dy1 = at_y
    _, _, x0, x1, dx0, dx1 = at_x
    r00, r01, r10, r11 = x0 * a + x1 * b, x0 * c + x1 * d, x0 * e + x1 * f, x0 * g + x1 * h
    along_z = dz0 * (y0 * r00 + y1 * r01) + dz1 * (y0 * r10 + y1 * r11)
    along_y = z0 * (dy0 * r00 + dy1 * r01) + z1 * (dy0 * r10 + dy1 * r11)
    lower, upper = y0 * (dx0 * a + dx1 * b) + y1 * (dx0 * c + dx1 * d), y0 * (dx0 * e + dx1 * f) + y1 * (dx0 * g + dx1 * h)
    return along_z, along_y, z0 * lower + z1 * upper


@formula
def interior_value(values, wz, wy, wx):
    """``blended`` inside; w: fractions of the point."""
    a, b, c, d, e, f, g, h = values
    r00, r01, r10, r11 = a + wx * (b - a), c + wx * (d - c), e + wx * (f - e), g + wx * (h - g)
    plane0, plane1 = r00 + wy * (r01 - r00), r10 + wy * (r11 - r10)
    return plane0 + wz * (plane1 - plane0)


@formula
def interior_slopes(values, wz, wy, wx):
    """``blended_slopes`` inside."""
    a, b, c, d, e, f, g, h = values
    s00, s01, s10, s11 = b - a, d - c, f - e, h - g
    r00, r10 = a + wx * s00, e + wx * s10
    t0, t1 = c + wx * s01 - r00, g + wx * s11 - r10
    q0, q1 = s00 + wy * (s01 - s00), s10 + wy * (s11 - s10)
    return r10 + wy * t1 - (r00 + wy * t0), t0 + wz * (t1 - t0), q0 + wz * (q1 - q0)


@cooperative_kernel(launch_bounds=lambda mode, border, *others: (TILE_X * TILE_Y, resident_blocks(mode, border, 6)))
def sample_tiled(mode: int, border: int, nearest: bool, plus: bool) -> Callable[..., None]:
    """``sample_batch``.

    n: Z, Y, X of ``moved`` and of the image, planes per block, channels of the image, the first of them, and their number in
    ``moved``, voxels of a window (of ``scatter_tiled``); uint32;  sz, sy, sx: float32;  affine: (B, 12);  u, image, moved: flat
    """

    def body(n, sz, sy, sx, u, affine, image, moved):
        b, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[6], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop = min(uint32(z + n[6]), n[0])
        plane, cells = uint32(n[1] * n[2]), OFFSET(n[3]) * OFFSET(n[4]) * OFFSET(n[5])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first, start = OFFSET(b) * OFFSET(3) * volume, (OFFSET(b) * OFFSET(n[7]) + OFFSET(n[8])) * cells
        out, matrix = OFFSET(b) * OFFSET(n[9]) * volume, affine_rows(mode, affine, b)
        at = uint32(uint32(z * n[1] + y) * n[2] + x)
        while z < stop:
            uz, uy, ux = field_at(mode, u, first, volume, at)
            pz, py, px = sampling_point(mode, z, y, x, uz, uy, ux, n, (sz, sy, sx), matrix)
            (qz, _), (qy, _), (qx, _) = bordered(pz, n[3], border), bordered(py, n[4], border), bordered(px, n[5], border)
            k, j, i = floor_int32(qz), floor_int32(qy), floor_int32(qx)
            inside, c = is_interior(k, j, i, n), uint32(0)
            while c < n[9]:
                where = address(image, start + OFFSET(c) * cells)
                if inside and not nearest:
                    voxels = interior_voxels(where, n, k, j, i)
                    value = interior_value(voxels, qz - float32(k), qy - float32(j), qx - float32(i))
                else:
                    at_z, at_y = around(pz, n[3], border, nearest), around(py, n[4], border, nearest)
                    at_x = around(px, n[5], border, nearest)
                    if nearest:
                        value = load(where, offset(at_z[0], at_y[0], at_x[0], n)) * (at_z[2] * at_y[2] * at_x[2])
                    else:
                        value = blended(voxels_around(where, n, at_z, at_y, at_x), at_z, at_y, at_x)
                if plus:
                    value += uz if c == uint32(0) else (uy if c == uint32(1) else ux)
                store(address(moved, out + OFFSET(c) * volume), at, value)
                c = uint32(c + uint32(1))
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body


@formula
def store_slopes(mode, accumulate, field, first, volume, at, scale, m, gz, gy, gx):
    """Write or add the derivative with respect to u from that with respect to the point."""
    if mode == AFFINE:
        gz, gy, gx = (m[0] * gz + m[4] * gy + m[8] * gx, m[1] * gz + m[5] * gy + m[9] * gx,
                      m[2] * gz + m[6] * gy + m[10] * gx)  # fmt: skip
    if mode == GRID:
        where = address(field, first + OFFSET(3) * OFFSET(at))
        put(accumulate, where, uint32(2), scale[0] * gz)
        put(accumulate, where, uint32(1), scale[1] * gy)
        put(accumulate, where, uint32(0), scale[2] * gx)
    else:
        put(accumulate, address(field, first), at, gz)
        put(accumulate, address(field, first + volume), at, gy)
        put(accumulate, address(field, first + OFFSET(2) * volume), at, gx)


@formula
def put(accumulate, where, at, value):
    """Store a value, or add it to what is there."""
    if accumulate:
        value += load(where, at)
    store(where, at, value)


@cooperative_kernel(launch_bounds=lambda mode, border, *others: (TILE_X * TILE_Y, resident_blocks(mode, border, 5)))
def pull_back_tiled(mode: int, border: int, plus: bool, accumulate: bool) -> Callable[..., None]:
    """The derivative with respect to u of ``sample_batch_backward``; arguments as in ``sample_tiled``;  field: flat."""

    def body(n, sz, sy, sx, u, affine, image, slope, field):
        b, z, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[6], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(TILE_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        if y >= n[1] or x >= n[2]:
            return
        stop = min(uint32(z + n[6]), n[0])
        plane, cells = uint32(n[1] * n[2]), OFFSET(n[3]) * OFFSET(n[4]) * OFFSET(n[5])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first, start = OFFSET(b) * OFFSET(3) * volume, (OFFSET(b) * OFFSET(n[7]) + OFFSET(n[8])) * cells
        given, matrix = OFFSET(b) * OFFSET(n[9]) * volume, affine_rows(mode, affine, b)
        at = uint32(uint32(z * n[1] + y) * n[2] + x)
        while z < stop:
            uz, uy, ux = field_at(mode, u, first, volume, at)
            pz, py, px = sampling_point(mode, z, y, x, uz, uy, ux, n, (sz, sy, sx), matrix)
            (qz, tz), (qy, ty), (qx, tx) = bordered(pz, n[3], border), bordered(py, n[4], border), bordered(px, n[5], border)
            k, j, i = floor_int32(qz), floor_int32(qy), floor_int32(qx)
            inside, c = is_interior(k, j, i, n), uint32(0)
            gz, gy, gx = ZERO, ZERO, ZERO
            while c < n[9]:
                r = load(address(slope, given + OFFSET(c) * volume), at)
                where = address(image, start + OFFSET(c) * cells)
                if inside:
                    voxels = interior_voxels(where, n, k, j, i)
                    dz, dy, dx = interior_slopes(voxels, qz - float32(k), qy - float32(j), qx - float32(i))
                    dz, dy, dx = dz * tz, dy * ty, dx * tx
                else:
                    at_z, at_y = around(pz, n[3], border, False), around(py, n[4], border, False)
                    at_x = around(px, n[5], border, False)
                    dz, dy, dx = blended_slopes(voxels_around(where, n, at_z, at_y, at_x), at_z, at_y, at_x)
                gz, gy, gx = gz + r * dz, gy + r * dy, gx + r * dx
                if plus:
                    gz, gy, gx = (gz + (r if c == uint32(0) else ZERO), gy + (r if c == uint32(1) else ZERO),
                                  gx + (r if c == uint32(2) else ZERO))  # fmt: skip
                c = uint32(c + uint32(1))
            store_slopes(mode, accumulate, field, first, volume, at, (sz, sy, sx), matrix, gz, gy, gx)
            z, at = uint32(z + uint32(1)), uint32(at + plane)

    return body


# ---------------------------------------------------------------- the derivative with respect to the image

SCATTER_Y = block_size(16, least=2)  # rows of a block
SCATTER_THREADS = TILE_X * SCATTER_Y
BLOCK_MEMORY = 2  # blocks of a multiprocessor that share its memory
MAX_WINDOW = 27648  # voxels of the image that a block keeps in shared memory, at most
FAR = 2**31 - 1
SECTOR = 3  # the first column of a window is a multiple of 2^SECTOR, the voxels that are added to at once


@formula
def least_of_warp(a):
    """The least of an int32 of all threads of a warp."""
    return a


@least_of_warp.intrinsic
def _least_by_shuffles() -> Callable[..., Any]:
    from numba import cuda

    def least_by_shuffles(a):
        everyone = uint32(0xFFFFFFFF)
        a = min(a, cuda.shfl_xor_sync(everyone, a, 16))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 8))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 4))
        a = min(a, cuda.shfl_xor_sync(everyone, a, 2))
        return min(a, cuda.shfl_xor_sync(everyone, a, 1))

    return least_by_shuffles


@formula
def first_of_warp(t):
    """Whether a thread states what ``least_of_warp`` found."""
    return True


@first_of_warp.intrinsic
def _lane_is_zero() -> Callable[..., Any]:
    def lane_is_zero(t):
        return uint32(t & uint32(31)) == uint32(0)

    return lane_is_zero


@formula
def has_weight(at_z, at_y, at_x):
    """Whether a point is inside: whether any of its voxels has a weight."""
    return (
        ((at_z[2] != ZERO) | (at_z[3] != ZERO))
        & ((at_y[2] != ZERO) | (at_y[3] != ZERO))
        & ((at_x[2] != ZERO) | (at_x[3] != ZERO))
    )


@formula
def shares(value, at_z, at_y, at_x):
    """``value`` times the weights of eight voxels, x fastest."""
    z0, z1 = value * at_z[2], value * at_z[3]
    a, c, e, g = z0 * at_y[2], z0 * at_y[3], z1 * at_y[2], z1 * at_y[3]
    x0, x1 = at_x[2], at_x[3]
    return a * x0, a * x1, c * x0, c * x1, e * x0, e * x1, g * x0, g * x1


@cooperative_kernel(launch_bounds=(SCATTER_THREADS, BLOCK_MEMORY))
def scatter_tiled(mode: int, border: int, nearest: bool) -> Callable[..., None]:
    """The derivative with respect to the image of ``sample_batch_backward``; other arguments as in ``sample_tiled``.

    A block adds in shared memory, to a window of the image with all voxels that the points of its planes are between, and the
    window to the image, whose voxels are then next to each other. Where the window does not fit, the planes are divided, and in
    the end added to the image at once. n[10]: voxels of a window, 4 bytes each of dynamic shared memory; scattered: flat
    """

    @formula
    def weights(n, z, y, x, scale, matrix, u, first, volume, at):
        """``around`` along the three axes."""
        uz, uy, ux = field_at(mode, u, first, volume, at)
        pz, py, px = sampling_point(mode, z, y, x, uz, uy, ux, n, scale, matrix)
        return around(pz, n[3], border, nearest), around(py, n[4], border, nearest), around(px, n[5], border, nearest)

    @formula
    def bound(box, t, lows, highs):
        """The least box around those of all threads; ``box``: lows, and minus highs."""
        cuda.syncthreads()
        if t < uint32(6):
            box[t] = int32(FAR)
        cuda.syncthreads()
        for axis in range(3):
            low, high = least_of_warp(lows[axis]), least_of_warp(highs[axis])
            if first_of_warp(t):
                cuda.atomic.min(box, axis, low)
                cuda.atomic.min(box, axis + 3, high)
        cuda.syncthreads()

    def body(n, sz, sy, sx, u, affine, slope, scattered):
        window, box = cuda.shared.array(0, float32), cuda.shared.array(6, int32)
        b, z0, column = block_place(uint32(cuda.blockIdx.x), n[2], n[0], n[6], TILE_X)
        y = uint32(cuda.blockIdx.y * uint32(SCATTER_Y) + cuda.threadIdx.y)
        x = uint32(column + cuda.threadIdx.x)
        t = uint32(cuda.threadIdx.y * uint32(TILE_X) + cuda.threadIdx.x)
        mine = (y < n[1]) & (x < n[2])
        stop = min(uint32(z0 + n[6]), n[0])
        plane, cells = uint32(n[1] * n[2]), OFFSET(n[3]) * OFFSET(n[4]) * OFFSET(n[5])
        volume = OFFSET(n[0]) * OFFSET(plane)
        first, start = OFFSET(b) * OFFSET(3) * volume, (OFFSET(b) * OFFSET(n[7]) + OFFSET(n[8])) * cells
        given, matrix, scale = OFFSET(b) * OFFSET(n[9]) * volume, affine_rows(mode, affine, b), (sz, sy, sx)
        step = n[6]
        while z0 < stop:
            z1 = min(uint32(z0 + step), stop)
            # the window of the planes z0 .. z1 - 1
            kl, jl, il, kh, jh, ih = int32(FAR), int32(FAR), int32(FAR), int32(FAR), int32(FAR), int32(FAR)
            z = z0
            while mine and z < z1:
                at = uint32(uint32(z * n[1] + y) * n[2] + x)
                at_z, at_y, at_x = weights(n, z, y, x, scale, matrix, u, first, volume, at)
                if border != ZEROS or has_weight(at_z, at_y, at_x):
                    kl, jl, il = min(kl, int32(at_z[0])), min(jl, int32(at_y[0])), min(il, int32(at_x[0]))
                    kh, jh, ih = min(kh, -int32(at_z[1])), min(jh, -int32(at_y[1])), min(ih, -int32(at_x[1]))
                z = uint32(z + uint32(1))
            bound(box, t, (kl, jl, il), (kh, jh, ih))
            kl, jl, il, kh, jh, ih = box[0], box[1], box[2], box[3], box[4], box[5]
            if kl == int32(FAR):  # all points are outside
                z0 = z1
                continue
            il = int32(int32(il >> int32(SECTOR)) << int32(SECTOR))
            rows, columns = uint32(int32(1) - jh - jl), uint32(int32(1) - ih - il)
            size = OFFSET(uint32(int32(1) - kh - kl)) * OFFSET(rows) * OFFSET(columns)
            fits = size <= OFFSET(n[10])
            if not fits and step > uint32(1):
                step = uint32(step >> uint32(1))
                continue
            per_column, per_row = ONE / float32(int32(columns)), ONE / float32(int32(rows))
            c = uint32(0)
            while c < n[9]:
                where = address(scattered, start + OFFSET(c) * cells)
                if fits:
                    e = t
                    while e < uint32(size):
                        window[e] = ZERO
                        e = uint32(e + uint32(SCATTER_THREADS))
                    cuda.syncthreads()
                z = z0
                while mine and z < z1:
                    at = uint32(uint32(z * n[1] + y) * n[2] + x)
                    at_z, at_y, at_x = weights(n, z, y, x, scale, matrix, u, first, volume, at)
                    value = load(address(slope, given + OFFSET(c) * volume), at)
                    added = shares(value, at_z, at_y, at_x)
                    k0, k1, j0, j1, i0, i1 = at_z[0], at_z[1], at_y[0], at_y[1], at_x[0], at_x[1]
                    if not fits:
                        add_beyond(where, offset(k0, j0, i0, n), added[0])
                        if not nearest:
                            add_beyond(where, offset(k0, j0, i1, n), added[1])
                            add_beyond(where, offset(k0, j1, i0, n), added[2])
                            add_beyond(where, offset(k0, j1, i1, n), added[3])
                            add_beyond(where, offset(k1, j0, i0, n), added[4])
                            add_beyond(where, offset(k1, j0, i1, n), added[5])
                            add_beyond(where, offset(k1, j1, i0, n), added[6])
                            add_beyond(where, offset(k1, j1, i1, n), added[7])
                    elif border != ZEROS or has_weight(at_z, at_y, at_x):
                        low, high = uint32(uint32(k0) - uint32(kl)), uint32(uint32(k1) - uint32(kl))
                        near, far = uint32(uint32(j0) - uint32(jl)), uint32(uint32(j1) - uint32(jl))
                        i0, i1 = uint32(uint32(i0) - uint32(il)), uint32(uint32(i1) - uint32(il))
                        a, d = uint32(uint32(low * rows + near) * columns), uint32(uint32(low * rows + far) * columns)
                        f, g = uint32(uint32(high * rows + near) * columns), uint32(uint32(high * rows + far) * columns)
                        cuda.atomic.add(window, uint32(a + i0), added[0])
                        if not nearest:
                            cuda.atomic.add(window, uint32(a + i1), added[1])
                            cuda.atomic.add(window, uint32(d + i0), added[2])
                            cuda.atomic.add(window, uint32(d + i1), added[3])
                            cuda.atomic.add(window, uint32(f + i0), added[4])
                            cuda.atomic.add(window, uint32(f + i1), added[5])
                            cuda.atomic.add(window, uint32(g + i0), added[6])
                            cuda.atomic.add(window, uint32(g + i1), added[7])
                    z = uint32(z + uint32(1))
                if fits:
                    cuda.syncthreads()
                    e = t
                    while e < uint32(size):
                        value = window[e]
                        if value != ZERO:
                            row = floor_int32((float32(int32(e)) + HALF) * per_column)
                            k = floor_int32((float32(row) + HALF) * per_row)
                            j, i = row - k * int32(rows), int32(e) - row * int32(columns)
                            add_beyond(where, offset(k + kl, j + jl, i + il, n), value)
                        e = uint32(e + uint32(SCATTER_THREADS))
                    cuda.syncthreads()
                c = uint32(c + uint32(1))
            z0 = z1

    return body

"""Sampling on a GPU: kernels of ``kernels.sampling`` with constants in place of arguments that say what is computed.

A block of threads owns a tile of the (y, x) plane and moves along z. A voxel is addressed by a 64-bit address of its volume and a
32-bit offset; where all eight voxels around a point are inside, neither indices nor weights are clamped.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import floor_int32
from daskreg.kernels.intrinsics.memory import address, beyond, load, store
from daskreg.torch.kernels.blocks import TILE_X, TILE_Y, block_place
from daskreg.torch.kernels.sampling import AFFINE, AFFINE_ALONE, BORDER, DISPLACEMENT, GRID, around, bordered

ONE, ZERO, HALF = float32(1), float32(0), float32(0.5)


def resident_blocks(mode: int, border: int, usual: int) -> int:
    """Blocks per multiprocessor whose registers fit: fewer for affine maps, which take twelve, and for reflections."""
    return usual if mode < AFFINE and border <= BORDER else 2


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

"""The exact gradient: windows of the factors."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.half import as_float32, storage_type
from daskreg.kernels.intrinsics.memory import address, load, load_uint16, store
from daskreg.similarity.lncc.cuda.windows import (
    GROUP,
    TILE_X,
    load_row,
    push_plane,
    push_plane_any,
    sum_x,
    sum_y,
    tile_offsets,
    tile_rows,
    window_blocks,
    window_threads,
)

ONE, ZERO = float32(1), float32(0)
GRADIENT_THREADS = window_threads(1)


def gradient_blocks(planes: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """The same for ``lncc_gradient_tiled``, of ``SLOPE_THREADS`` threads."""
    return window_blocks(1, planes, ny, nx, depth)


@formula
def vector_output(out):
    """Where the components of a vector go."""
    return out[0], out[1], out[2]


@formula
def load_fields(base, at, bits, fields, values):
    """Load a plane of three fields into registers; zeros out of the grid."""
    a, b, c = address(fields[0], base), address(fields[1], base), address(fields[2], base)
    k = len(at)
    for s in range(k):
        values[s], values[k + s], values[2 * k + s] = ZERO, ZERO, ZERO
        if uint32(bits & uint32(1 << s)) != uint32(0):
            values[s], values[k + s], values[2 * k + s] = load(a, at[s]), load(b, at[s]), load(c, at[s])


@formula
def write_shared_fields(raw, t, threads, size, values):
    """Put them into shared memory."""
    for q in range(3):
        for s in range(len(values) // 3):
            raw[uint32(t + uint32(q * size + s * threads))] = values[q * (len(values) // 3) + s]


@formula
def sum_fields_x(raw, size, width, t, radius, lead, height, a, mid):
    """Windows along x of three fields: a thread four neighbours of a row."""
    row, group = uint32(t >> uint32(3)), uint32(t & uint32(7))
    if row < uint32(height):
        at = uint32(row * uint32(width) + group * uint32(GROUP))
        to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
        for q in range(3):
            load_row(raw, uint32(at + uint32(q * size)), a)
            sum_x(a, lead, radius, mid, uint32(to + uint32(q * height * TILE_X)))


def gradient_bounds(radius: int, masked: bool, unrolled: bool, half: bool = False) -> tuple[int, int]:
    """See ``window_bounds``."""
    return GRADIENT_THREADS, 3 if radius <= 2 else 2 if radius <= 5 else 1


@cooperative_kernel(launch_bounds=gradient_bounds)
def lncc_gradient_tiled(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_slope``: the exact gradient times N in place of ``moved``.

    Launch with blocks ``slope_blocks`` and threads ``SLOPE_THREADS``. Arguments as in ``lncc_factors_tiled``, which wrote
    dkc: (3, N), without epsilon, flat and sums.
    """
    (kind, none), load_fixed = storage_type(half), load_uint16 if half else load  # F as it is stored
    k, rows, threads, tall = 2 * radius + 1, 2, GRADIENT_THREADS, tile_rows(1)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tall + 2 * radius, GROUP + 2 * pad, pad - radius
    slots = -(-width * height // threads)
    size = slots * threads
    put_in = push_plane if unrolled else push_plane_any
    raws, mids, kept, places, loaded = 3 * size, 3 * height * TILE_X, 3 * rows, 3 * rows * k, 3 * slots

    @formula
    def step(slot, z, grid, thread, arrays, tiles, registers):
        """A plane comes in; the voxels ``radius`` planes behind are done."""
        start, end, ny, nx, held, floor = grid
        t, x, y, below, bits = thread
        fields, fixed, weight, moved = arrays
        raw, mid = tiles
        at, own_at, values, a, ring, prefix, now, own_f, own_m, own_w = registers
        if z < end and z >= int32(start - int32(radius)):
            done = int32(z - int32(radius))
            write_shared_fields(raw, t, threads, size, values)
            cuda.syncthreads()  # noqa: F821
            sum_fields_x(raw, size, width, t, radius, lead, height, a, mid)
            back = OFFSET(max(done, int32(0))) * floor
            from_f, from_m = address(fixed, back), address(moved, back)
            from_w = address(weight, back) if masked else from_f
            for q in range(rows):
                own_f[q], own_m[q], own_w[q] = none, ZERO, ONE
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    own_f[q], own_m[q] = load_fixed(from_f, own_at[q]), load(from_m, own_at[q])
                    if masked:
                        own_w[q] = load(from_w, own_at[q])
            coming = int32(z + int32(1))
            there = bits if int32(0) <= coming < min(held, end) else uint32(0)
            load_fields(OFFSET(max(coming, int32(0))) * floor, at, there, fields, values)
            cuda.syncthreads()  # noqa: F821
            for field in range(3):
                sum_y(mid, below, field, height, radius, rows, now)
            put_in(ring, prefix, now, slot, k)
            for q in range(rows):
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    slope = -(own_w[q] * (as_float32(own_f[q]) * now[q] - own_m[q] * now[rows + q] + now[2 * rows + q]))
                    store(from_m, own_at[q], slope if own_m[q] == own_m[q] else ZERO)

    @formula
    def steps(slot, z, *block):
        """Four planes, as far as the ring has places for them."""
        step(slot, int32(z + int32(slot)), *block)
        if k > slot + 1:
            step(slot + 1, int32(z + int32(slot + 1)), *block)
        if k > slot + 2:
            step(slot + 2, int32(z + int32(slot + 2)), *block)
        if k > slot + 3:
            step(slot + 3, int32(z + int32(slot + 3)), *block)

    def body(first, planes, ny, nx, held, origin, depth, dkc, fixed, weight, moved):
        raw = cuda.shared.array(raws, float32, 16)  # noqa: F821
        mid = cuda.shared.array(mids, float32, 16)  # noqa: F821
        at = cuda.local.array(slots, uint32)  # noqa: F821
        own_at = cuda.local.array(rows, uint32)  # noqa: F821
        values = cuda.local.array(loaded, float32)  # noqa: F821
        a = cuda.local.array(reach, float32)  # noqa: F821
        ring = cuda.local.array(places, float32)  # noqa: F821
        prefix = cuda.local.array(kept, float32)  # noqa: F821
        now = cuda.local.array(kept, float32)  # noqa: F821
        own_f = cuda.local.array(rows, kind)  # noqa: F821
        own_m = cuda.local.array(rows, float32)  # noqa: F821
        own_w = cuda.local.array(rows, float32)  # noqa: F821
        t = uint32(cuda.threadIdx.x)  # noqa: F821
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * tall)  # noqa: F821
        start = int32(first + int32(cuda.blockIdx.z) * depth)  # noqa: F821
        stop = int32(min(int32(start + depth), int32(first + planes)))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, below = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        floor, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        bits = tile_offsets(at, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_at[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
        for q in range(places):
            ring[q] = ZERO
        for q in range(kept):
            prefix[q] = ZERO
        z = int32(start - int32(radius))  # the plane that comes in
        there, fields = bits if int32(0) <= z < held else uint32(0), vector_output(dkc)
        load_fields(OFFSET(max(z, int32(0))) * floor, at, there, fields, values)
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid, thread = (start, end, ny, nx, held, floor), (t, x, y, below, bits)
        arrays, tiles = (fields, fixed, weight, moved), (raw, mid)
        registers = at, own_at, values, a, ring, prefix, now, own_f, own_m, own_w
        if unrolled:
            z = int32(z - int32(slot))  # where this round of the ring began
            while z < end:
                steps(0, z, grid, thread, arrays, tiles, registers)
                if k > 4:
                    steps(4, z, grid, thread, arrays, tiles, registers)
                if k > 8:
                    steps(8, z, grid, thread, arrays, tiles, registers)
                if k > 12:
                    steps(12, z, grid, thread, arrays, tiles, registers)
                if k > 16:
                    steps(16, z, grid, thread, arrays, tiles, registers)
                z = int32(z + int32(k))
        else:
            while z < end:
                step(slot, z, grid, thread, arrays, tiles, registers)
                slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
                z = int32(z + int32(1))

    return body

"""The exact gradient: window sums of the factors."""

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
    """Blocks of ``lncc_gradient_tiled``, with ``GRADIENT_THREADS`` threads each, for ``depth`` planes each."""
    return window_blocks(1, planes, ny, nx, depth)


@formula
def vector_output(out):
    """The components of a vector field, for ``store_results``."""
    return out[0], out[1], out[2]


@formula
def load_fields(base, offsets, valid, fields, values):
    """Load a plane of three fields into registers; zero outside the grid."""
    a, b, c = address(fields[0], base), address(fields[1], base), address(fields[2], base)
    k = len(offsets)
    for s in range(k):
        values[s], values[k + s], values[2 * k + s] = ZERO, ZERO, ZERO
        if uint32(valid & uint32(1 << s)) != uint32(0):
            values[s], values[k + s], values[2 * k + s] = load(a, offsets[s]), load(b, offsets[s]), load(c, offsets[s])


@formula
def write_shared_fields(raw, t, threads, size, values):
    """Write them to shared memory."""
    for q in range(3):
        for s in range(len(values) // 3):
            raw[uint32(t + uint32(q * size + s * threads))] = values[q * (len(values) // 3) + s]


@formula
def sum_fields_x(raw, size, width, t, radius, lead, height, a, mid):
    """Sums along x of three fields: each thread four neighbours of a row."""
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
    """``lncc_gradient``: replace ``moved`` by N times the exact gradient.

    Launch with ``gradient_blocks`` and ``GRADIENT_THREADS``. Arguments as in ``lncc_factors_tiled``, which wrote dkc (3, N),
    without epsilon, flat and sums.
    """
    (kind, none), load_fixed = storage_type(half), load_uint16 if half else load  # of the stored fixed image
    k, rows, threads, tile_height = 2 * radius + 1, 2, GRADIENT_THREADS, tile_rows(1)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile_height + 2 * radius, GROUP + 2 * pad, pad - radius
    loads = -(-width * height // threads)
    size = loads * threads
    push = push_plane if unrolled else push_plane_any
    raw_size, mid_size, prefix_size, ring_size, values_size = 3 * size, 3 * height * TILE_X, 3 * rows, 3 * rows * k, 3 * loads

    @formula
    def step(slot, z, grid, thread, arrays, tiles, registers):
        """Add a plane; the voxels ``radius`` planes earlier are complete."""
        start, end, ny, nx, held, plane_size = grid
        t, x, y, column, valid = thread
        fields, fixed, weight, moved = arrays
        raw, mid = tiles
        offsets, own_offsets, values, a, ring, prefix, sums, own_f, own_m, own_w = registers
        if z < end and z >= int32(start - int32(radius)):
            done = int32(z - int32(radius))
            write_shared_fields(raw, t, threads, size, values)
            cuda.syncthreads()
            sum_fields_x(raw, size, width, t, radius, lead, height, a, mid)
            base = OFFSET(max(done, int32(0))) * plane_size
            from_f, from_m = address(fixed, base), address(moved, base)
            from_w = address(weight, base) if masked else from_f
            for q in range(rows):
                own_f[q], own_m[q], own_w[q] = none, ZERO, ONE
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    own_f[q], own_m[q] = load_fixed(from_f, own_offsets[q]), load(from_m, own_offsets[q])
                    if masked:
                        own_w[q] = load(from_w, own_offsets[q])
            next_plane = int32(z + int32(1))
            next_valid = valid if int32(0) <= next_plane < min(held, end) else uint32(0)
            load_fields(OFFSET(max(next_plane, int32(0))) * plane_size, offsets, next_valid, fields, values)
            cuda.syncthreads()
            for field in range(3):
                sum_y(mid, column, field, height, radius, rows, sums)
            push(ring, prefix, sums, slot, k)
            for q in range(rows):
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    gradient = -(own_w[q] * (as_float32(own_f[q]) * sums[q] - own_m[q] * sums[rows + q] + sums[2 * rows + q]))
                    store(from_m, own_offsets[q], gradient if own_m[q] == own_m[q] else ZERO)

    @formula
    def steps(slot, z, *block):
        """Four planes, as far as the ring has slots for them."""
        step(slot, int32(z + int32(slot)), *block)
        if k > slot + 1:
            step(slot + 1, int32(z + int32(slot + 1)), *block)
        if k > slot + 2:
            step(slot + 2, int32(z + int32(slot + 2)), *block)
        if k > slot + 3:
            step(slot + 3, int32(z + int32(slot + 3)), *block)

    def body(first, planes, ny, nx, held, origin, depth, dkc, fixed, weight, moved):
        raw = cuda.shared.array(raw_size, float32, 16)
        mid = cuda.shared.array(mid_size, float32, 16)
        offsets = cuda.local.array(loads, uint32)
        own_offsets = cuda.local.array(rows, uint32)
        values = cuda.local.array(values_size, float32)
        a = cuda.local.array(reach, float32)
        ring = cuda.local.array(ring_size, float32)
        prefix = cuda.local.array(prefix_size, float32)
        sums = cuda.local.array(prefix_size, float32)
        own_f = cuda.local.array(rows, kind)
        own_m = cuda.local.array(rows, float32)
        own_w = cuda.local.array(rows, float32)
        t = uint32(cuda.threadIdx.x)
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * tile_height)
        start = int32(first + int32(cuda.blockIdx.z) * depth)
        stop = int32(min(int32(start + depth), int32(first + planes)))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, column = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        plane_size, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        valid = tile_offsets(offsets, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_offsets[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(prefix_size):
            prefix[q] = ZERO
        z = int32(start - int32(radius))  # the plane to add
        first_valid, fields = valid if int32(0) <= z < held else uint32(0), vector_output(dkc)
        load_fields(OFFSET(max(z, int32(0))) * plane_size, offsets, first_valid, fields, values)
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid, thread = (start, end, ny, nx, held, plane_size), (t, x, y, column, valid)
        arrays, tiles = (fields, fixed, weight, moved), (raw, mid)
        registers = offsets, own_offsets, values, a, ring, prefix, sums, own_f, own_m, own_w
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

"""The exact gradient: window sums of the factors."""

from __future__ import annotations

from collections.abc import Callable

from numba import float32, int32, uint32, uint64

from daskreg.kernels.compiler.configuration import OFFSET
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.asynchronous import commit_async, copy_async, wait_async
from daskreg.kernels.intrinsics.half import as_float32, storage_type
from daskreg.kernels.intrinsics.memory import address, held, load, load_uint16, store
from daskreg.similarity.lncc.cuda.windows import (
    GROUP,
    TILE_X,
    clamped_offset,
    clear_shared,
    group_offsets,
    has_bit,
    load_own,
    load_row,
    push_any,
    sum_and_push_plane,
    sum_x,
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
def copy_fields(z, stop, plane_size, offsets, valid, fields, shared, to, size, threads):
    """Begin to copy a plane of three fields to shared memory, except outside the grid; zeros unless z is in 0 .. stop - 1."""
    if uint32(z) < uint32(stop):
        base = OFFSET(uint32(z)) * plane_size
        for q in range(3):
            source = address(fields[q], base)
            for s in range(len(offsets)):
                if has_bit(valid, s):
                    copy_async(source, offsets[s], shared, uint64(to) + uint64(q * size + s * threads))
    else:
        for s in range(len(offsets)):
            if has_bit(valid, s):
                for q in range(3):
                    shared[uint64(to) + uint64(q * size + s * threads)] = ZERO
    commit_async()


@formula
def sum_fields_x(shared, size, at, to, radius, lead, plane, a):
    """Sums along x of three fields: each thread four neighbours of a row."""
    for q in range(3):
        load_row(shared, at + uint64(q * size), a)
        sum_x(a, lead, radius, shared, to + uint64(q * plane))


def gradient_bounds(radius: int, masked: bool, half: bool = False) -> tuple[int, int]:
    """See ``window_bounds``."""
    return GRADIENT_THREADS, 3 if radius <= 3 else 2 if radius <= 5 else 1


@cooperative_kernel(launch_bounds=gradient_bounds)
def lncc_gradient_tiled(radius: int, masked: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_gradient``: replace ``moved`` by N times the exact gradient.

    Launch with ``gradient_blocks`` and ``GRADIENT_THREADS``. Arguments as in ``lncc_factors_tiled``, which wrote dkc (3, N),
    without epsilon, flat and sums.
    """
    (kind, _), load_fixed = storage_type(half), load_uint16 if half else load  # of the stored fixed image
    k, rows, threads, tile_height = 2 * radius + 1, 2, GRADIENT_THREADS, tile_rows(1)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tile_height + 2 * radius, GROUP + 2 * pad, pad - radius
    size = width * height
    loads = -(-size // threads)
    mid = 6 * size  # shared memory: two planes of the tile, one of which is being loaded, and from here on sums along x
    shared_size, prefix_size, ring_size = mid + 3 * height * TILE_X, 3 * rows, 3 * rows * k

    @formula
    def step(slot, z, present, grid, thread, arrays, shared, registers):
        """Add a plane; the voxels ``radius`` planes earlier are complete.

        present: where the plane begins in shared memory;  returns where the next one does
        """
        start, end, nz, plane_size = grid
        t, at, to, column, valid = thread
        fields, fixed, weight, moved = arrays
        offsets, own_offsets, a, ring, prefix, sums, own_f, own_m, own_w = registers
        done, following = int32(z - int32(radius)), uint32(uint32(3 * size) - present)
        copy_fields(int32(z + int32(1)), min(nz, end), plane_size, offsets, valid, fields, shared, uint32(t + following), size,
                    threads)  # fmt: skip
        wait_async()
        cuda.syncthreads()
        if t < uint32(8 * height):
            sum_fields_x(shared, size, at + uint64(present), to, radius, lead, height * TILE_X, a)
        base = OFFSET(uint32(max(done, start))) * plane_size
        into = load_own(load_fixed, base, own_offsets, masked, fixed, weight, moved, own_f, own_m, own_w)
        cuda.syncthreads()
        push_any(sum_and_push_plane, ring, prefix, sums, slot, k, (shared, column, 3, height, radius, rows))
        if done >= start:
            for q in range(rows):
                if has_bit(valid, loads + q):
                    gradient = -(own_w[q] * (as_float32(own_f[q]) * sums[q] - own_m[q] * sums[rows + q] + sums[2 * rows + q]))
                    store(into, own_offsets[q], gradient if own_m[q] == own_m[q] else ZERO)
        return following

    def body(first, planes, ny, nx, nz, origin, depth, dkc, fixed, weight, moved):
        shared = cuda.shared.array(shared_size, float32, 16)
        offsets = cuda.local.array(loads, uint32)
        own_offsets = cuda.local.array(rows, uint32)
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
        x, y = int32(left + int32(lane)), int32(top + int32(line))
        column = uint64(held(uint32(uint32(line * uint32(TILE_X)) + lane))) + uint64(mid)
        plane_size, end = OFFSET(ny) * OFFSET(nx), int32(stop + int32(radius))
        valid = tile_offsets(offsets, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            row = int32(y + int32(q))
            own_offsets[q] = clamped_offset(row, x, ny, nx)
            if x < nx and row < ny:
                valid |= uint32(1 << (loads + q))
        valid = held(valid)
        clear_shared(shared, t, threads, mid)
        cuda.syncthreads()
        for q in range(ring_size):
            ring[q] = ZERO
        for q in range(prefix_size):
            prefix[q] = ZERO
        z = int32(start - int32(radius))  # the plane to add
        fields = vector_output(dkc)
        copy_fields(z, min(nz, end), plane_size, offsets, valid, fields, shared, t, size, threads)
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        at, to = group_offsets(t, width)
        to += uint64(mid)
        present, grid, thread = uint32(0), (start, end, nz, plane_size), (t, at, to, column, valid)
        arrays = fields, fixed, weight, moved
        registers = offsets, own_offsets, a, ring, prefix, sums, own_f, own_m, own_w
        while z < end:
            present = step(slot, z, present, grid, thread, arrays, shared, registers)
            slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
            z = int32(z + int32(1))

    return body

"""Composition on a GPU, in one pass over memory with the Gaussian of the result.

Blocks move along z as those of ``adam.cuda`` do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32, int32, uint32, uint64

from daskreg.kernels.adam.cuda import packed_coherent_direction_of, packed_direction, packed_gated_direction
from daskreg.kernels.compiler.configuration import WARP_SHUFFLE, block_size, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import divide_fast, fma, lerp, sqrt_fast
from daskreg.kernels.intrinsics.memory import load_bytes, store_components
from daskreg.kernels.smoothing.cuda import filter_sum, push_plane

ONE, ZERO = float32(1), float32(0)
LANES, WARPS = block_size(32, least=6), block_size(4, least=3)  # of a block: columns, warps
ROWS = block_size(4, least=2)  # per warp
MAX_PLANES = 64  # most planes per block: neighbouring blocks that advance together find each other's planes in the cache
SHARED_PITCH = block_size(64, least=8)  # of rows in shared memory: lanes that read different rows and planes use different banks


def launch_grid(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes per block, blocks and threads of ``compose_smooth``, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = WARPS * ROWS - 2 * radius, LANES - 2 * radius
    across, down = -(-nx // tx), -(-ny // ty)
    length = min(MAX_PLANES, planes_per_block(nz, across * down, 4, radius))
    return np.int32(length), (across, down, -(-nz // length)), (LANES, WARPS, 1)


@formula
def lower_neighbour(d):
    """For a point at distance d, |d| < 1: 1 if its cell begins one voxel earlier, and the weight of the cell's second voxel."""
    back = d < ZERO
    return uint32(back), d + ONE if back else d


@formula
def interpolate_shared(shared, a, b, pitch, wz, wy, wx):
    """Trilinear value in shared memory between the voxels from a on in one plane and from b on in the next."""
    one, row = uint64(1), uint64(pitch)
    plane0 = lerp(lerp(shared[a], shared[a + one], wx), lerp(shared[a + row], shared[a + row + one], wx), wy)
    plane1 = lerp(lerp(shared[b], shared[b + one], wx), lerp(shared[b + row], shared[b + row + one], wx), wy)
    return lerp(plane0, plane1, wz)


@formula
def clamped_plane(k, first, whole, edge):
    """Plane k of the arrays, clamped to the global grid and to the planes that the arrays have."""
    return uint64(uint32(min(max(min(max(k + first, int32(0)), whole - int32(1)) - first, int32(0)), int32(edge) - int32(1))))


@formula
def filter_lanes(value, weights, r):
    """The filter along x by exchange between the lanes of a warp."""
    total = weights[r] * value
    for q in range(1, r + 1):
        total = fma(weights[r - q], cuda.shfl_up_sync(0xFFFFFFFF, value, q), total)
        total = fma(weights[r + q], cuda.shfl_down_sync(0xFFFFFFFF, value, q), total)
    return total


@formula
def no_corrections(d):
    """Where the direction itself is stored."""
    return ZERO


@formula
def load_corrections(d):
    """What the direction depends on besides the moments: bias corrections and epsilon."""
    t = d[2][0]
    return d[1][t, 2], d[1][t, 3], d[1][t, 4]


@formula
def load_gated_corrections(d):
    """Those, and the chance level."""
    t = d[2][0]
    return d[1][t, 2], d[1][t, 3], d[1][t, 4], d[1][t, 5]


@formula
def stored_direction(a, b, c, corrections):
    """A direction that is stored as it is."""
    return a, b, c


@formula
def direction_of_words(a, b, c, corrections):
    """``packed_direction`` of each component."""
    return packed_direction(a, corrections), packed_direction(b, corrections), packed_direction(c, corrections)


@formula
def gated_direction_of_words(a, b, c, corrections):
    """``packed_gated_direction`` of each component."""
    first, second = packed_gated_direction(a, corrections), packed_gated_direction(b, corrections)
    return first, second, packed_gated_direction(c, corrections)


@formula
def load_moments(d, base, byte):
    """Moments, from which the direction follows."""
    return load_bytes(d[0], base, byte)


@formula
def as_it_is(dz, dy, dx, most):
    """A step that is short enough."""
    return dz, dy, dx


@formula
def shorten(dz, dy, dx, most):
    """A vector with the same direction and at most this length."""
    square = fma(dz, dz, fma(dy, dy, dx * dx))
    part = divide_fast(most, sqrt_fast(square)) if square > most * most else ONE
    return part * dz, part * dy, part * dx


def launch_bounds(radius, mixed=False, gated=False, coherent=False, shortened=False):
    """Threads of a block, and blocks of a multiprocessor: the more, the fewer registers a thread has."""
    return WARPS * 32, 2 if shortened else 4


@cooperative_kernel(launch_bounds=launch_bounds)
def compose_smooth(radius, mixed=False, gated=False, coherent=False, shortened=False):
    """``u <- G (s d + u o (Id + s d))``, s d at most half a voxel: 36 bytes per voxel.

        A warp computes ``ROWS`` rows of 32 columns; the ``radius`` columns at each end are computed for their neighbours only.
    Three planes of u are in shared memory, clamped to the global grid, because a step is shorter than a voxel. The filter along
    x exchanges values between lanes, along y it uses shared memory, along z registers. Arguments: length, n, edge, weights,
    norm_z, norm_y, norm_x as in ``smooth_adam``; first (global plane at plane 0 of the arrays), whole (planes of the global
    grid; int32), half_step (float32), longest (1,) float32, d, u, composed (3 N,). ``mixed``: instead of d the moments, rates
    and clock of ``smooth_adam``, from which the direction is computed again, ``gated`` and ``coherent`` as there. ``shortened``:
    s d is cut to half_step where it is longer.
    """
    r, taps, rows = radius, 2 * radius + 1, ROWS
    threads, height, lanes = WARPS * LANES, WARPS * ROWS, LANES
    middle, rings, fetched = 3 * height * lanes, max(1, 3 * ROWS * (taps - 1)), 3 * ROWS
    width, pitch = lanes + 2, SHARED_PITCH
    plane_elements, area = width * (height + 2), pitch * (height + 2)
    loads, full_loads = -(-plane_elements // threads), plane_elements // threads
    shared_size, prefetch_size = 9 * area, 3 * loads
    shuffled = WARP_SHUFFLE
    kind, none = (uint32, uint32(0)) if mixed else (float32, ZERO)
    again = (load_gated_corrections, gated_direction_of_words) if gated else (load_corrections, direction_of_words)
    again = (load_gated_corrections, packed_coherent_direction_of) if coherent else again
    limited = shorten if shortened else as_it_is
    load_direction, (load_rates, decode) = (load_moments, again) if mixed else (load_bytes, (no_corrections, stored_direction))

    @formula
    def along(mid, thread, weights):
        """The filter along x in shared memory, without warp shuffles."""
        cuda.syncthreads()
        row, i = int(thread) // lanes * rows, int(thread) % lanes
        sums = []
        for e in range(rows):
            for c in range(3):
                start = c * height * lanes + (row + e) * lanes
                total = weights[r] * mid[start + i]
                for q in range(1, r + 1):
                    total += weights[r - q] * mid[start + max(i - q, 0)] + weights[r + q] * mid[start + min(i + q, lanes - 1)]
                sums.append((start + i, total))
        cuda.syncthreads()
        for at, total in sums:
            mid[at] = total
        cuda.syncthreads()

    def body(length, n, edge, weights, norm_z, norm_y, norm_x, first, whole, half_step, longest, d, u, composed):
        mid = cuda.shared.array(middle, float32)
        shared_u = cuda.shared.array(shared_size, float32)
        sums, prefetched_d = cuda.local.array(rings, float32), cuda.local.array(fetched, kind)
        prefetched_u, byte_offsets = cuda.local.array(prefetch_size, float32), cuda.local.array(loads, uint32)
        shared_offsets = cuda.local.array(loads, uint32)
        in_image = cuda.local.array(rows, int32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(lanes) + i)
        left, top = (
            int32(cuda.blockIdx.x) * int32(lanes - 2 * r) - int32(r),
            int32(cuda.blockIdx.y) * int32(height - 2 * r) - int32(r),
        )
        col, row = left + int32(i), top + int32(j) * int32(rows)
        ny, nx = int32(n[2]), int32(n[3])
        plane = uint64(n[2]) * uint64(n[3])
        size, stride = plane * uint64(edge), uint32(uint32(4) * n[3])
        own_byte = uint32(uint32(4) * uint32(row * nx + col))
        owned = uint32(i - uint32(r)) < uint32(lanes - 2 * r)
        norm = norm_x[min(max(col, int32(0)), nx - int32(1))]
        scale, corrections = half_step / max(ONE, sqrt_fast(longest[0])), load_rates(d)
        low = int32(n[0]) + int32(cuda.blockIdx.z) * length
        stop = min(low + length, int32(n[0] + n[1]))
        k = low - int32(r)
        for q in range(rings):
            sums[q] = ZERO
        base = plane * uint64(uint32(max(k, int32(0))))
        for e in range(rows):
            in_image[e] = int32(uint32(row + int32(e)) < n[2] and uint32(col) < n[3])
            for c in range(3):
                prefetched_d[3 * e + c] = none
                if in_image[e] and uint32(k) < edge:
                    prefetched_d[3 * e + c] = load_direction(d, base + uint64(c) * size, uint32(own_byte + uint32(e) * stride))
        before, now = plane * clamped_plane(k - int32(1), first, whole, edge), plane * clamped_plane(k, first, whole, edge)
        after = plane * clamped_plane(k + int32(1), first, whole, edge)
        for e in range(loads):
            element = uint32(thread + uint32(e * threads))
            line, at_x = top + int32(element // uint32(width)) - int32(1), left + int32(element % uint32(width)) - int32(1)
            line, at_x = min(max(line, int32(0)), ny - int32(1)), min(max(at_x, int32(0)), nx - int32(1))
            byte_offsets[e] = uint32(uint32(4) * uint32(line * nx + at_x))
            shared_offsets[e] = uint32(element // uint32(width) * uint32(pitch) + element % uint32(width))
            for c in range(3):
                if e < full_loads or element < uint32(plane_elements):
                    shared_u[uint64(shared_offsets[e]) + uint64(c * area)] = load_bytes(
                        u, before + uint64(c) * size, byte_offsets[e]
                    )
                    shared_u[uint64(shared_offsets[e]) + uint64((3 + c) * area)] = load_bytes(
                        u, now + uint64(c) * size, byte_offsets[e]
                    )
                    prefetched_u[3 * e + c] = load_bytes(u, after + uint64(c) * size, byte_offsets[e])
        below, level, above = uint32(0), uint32(3 * area), uint32(6 * area)
        corner = uint32((j * uint32(rows) + uint32(1)) * uint32(pitch) + i + uint32(1))
        to = uint64(uint32(j * uint32(rows * lanes) + i))
        while k < stop + int32(r):
            z = k - int32(r)
            for e in range(loads):
                if e < full_loads or uint32(thread + uint32(e * threads)) < uint32(plane_elements):
                    for c in range(3):
                        shared_u[uint64(uint32(above + shared_offsets[e])) + uint64(c * area)] = prefetched_u[3 * e + c]
            cuda.syncthreads()
            after = plane * clamped_plane(k + int32(2), first, whole, edge)
            for e in range(loads):
                if e < full_loads or uint32(thread + uint32(e * threads)) < uint32(plane_elements):
                    for c in range(3):
                        prefetched_u[3 * e + c] = load_bytes(u, after + uint64(c) * size, byte_offsets[e])
            plane_exists = uint32(k) < edge
            for e in range(rows):
                dz, dy, dx = decode(prefetched_d[3 * e], prefetched_d[3 * e + 1], prefetched_d[3 * e + 2], corrections)
                dz, dy, dx = limited(scale * dz, scale * dy, scale * dx, half_step)
                bz, wz = lower_neighbour(dz)
                by, wy = lower_neighbour(dy)
                bx, wx = lower_neighbour(dx)
                at = uint32(corner - by * uint32(pitch) - bx)
                p0 = uint64(uint32(at + (below if bz else level))) + uint64(e * pitch)
                p1 = uint64(uint32(at + (level if bz else above))) + uint64(e * pitch)
                c0 = dz + interpolate_shared(shared_u, p0, p1, pitch, wz, wy, wx)
                c1 = dy + interpolate_shared(shared_u, p0 + uint64(area), p1 + uint64(area), pitch, wz, wy, wx)
                c2 = dx + interpolate_shared(shared_u, p0 + uint64(2 * area), p1 + uint64(2 * area), pitch, wz, wy, wx)
                if not (plane_exists and in_image[e]):
                    c0, c1, c2 = ZERO, ZERO, ZERO
                if shuffled:
                    c0, c1, c2 = filter_lanes(c0, weights, r), filter_lanes(c1, weights, r), filter_lanes(c2, weights, r)
                line = to + uint64(e * lanes)
                mid[line], mid[line + uint64(height * lanes)], mid[line + uint64(2 * height * lanes)] = c0, c1, c2
            k += int32(1)
            more = k < stop + int32(r) and uint32(k) < edge
            base = plane * uint64(uint32(max(k, int32(0))))
            for e in range(rows):
                for c in range(3):
                    prefetched_d[3 * e + c] = none
                    if more and in_image[e]:
                        prefetched_d[3 * e + c] = load_direction(
                            d, base + uint64(c) * size, uint32(own_byte + uint32(e) * stride)
                        )
            cuda.syncthreads()
            if not shuffled:
                along(mid, thread, weights)
            below, level, above = level, above, below
            at_z = plane * uint64(uint32(max(z, int32(0))))
            for e in range(rows):
                line = uint32(j * uint32(rows) + uint32(e))
                owned_row = uint32(line - uint32(r)) < uint32(height - 2 * r)
                if owned_row:
                    start = to + uint64(e * lanes) - uint64(r * lanes)
                    a = push_plane(sums, 3 * e * (taps - 1), filter_sum(mid, start, lanes, weights, taps), weights, taps)
                    start += uint64(height * lanes)
                    b = push_plane(sums, (3 * e + 1) * (taps - 1), filter_sum(mid, start, lanes, weights, taps), weights, taps)
                    start += uint64(height * lanes)
                    c = push_plane(sums, (3 * e + 2) * (taps - 1), filter_sum(mid, start, lanes, weights, taps), weights, taps)
                    if z >= low and owned and in_image[e]:
                        total = norm * norm_y[row + int32(e)] * norm_z[z]
                        store_components(
                            composed, at_z, size, uint32(own_byte + uint32(e) * stride), a * total, b * total, c * total
                        )

    return body

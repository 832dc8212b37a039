"""Composition on a GPU, in one pass over memory with the Gaussian of the result.

Blocks move along z as those of ``adam.cuda`` do.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import float32, int32, uint32, uint64

from daskreg.kernels.adam.step import packed_coherent_direction_of, packed_direction, packed_gated_direction
from daskreg.kernels.compiler.configuration import WARP_SHUFFLE, block_size, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import clamp, divide_normal, fma, lerp, sqrt_fast
from daskreg.kernels.intrinsics.memory import address, held, load, load_word, store
from daskreg.kernels.smoothing.cuda import filter_sum, present_plane, push_plane

ONE, ZERO = float32(1), float32(0)
LANES = block_size(32, least=8)  # of a warp: columns
IN_IMAGE, OWN = 1, 256  # of the flags of a thread, shifted by the row
MAX_PLANES = 64  # most planes per block: neighbouring blocks that advance together find each other's planes in the cache


class Tile(NamedTuple):
    """What a block composes: ``lines`` of ``groups`` warps side by side, one above the other, with ``rows`` rows of each warp.

    blocks: of a multiprocessor; the more, the fewer registers a thread has
    """

    groups: int
    lines: int
    rows: int
    blocks: int

    @property
    def width(self) -> int:
        """Columns, each of which a thread loads."""
        return self.groups * LANES

    @property
    def height(self) -> int:
        """Rows that are composed."""
        return self.lines * self.rows

    @property
    def margin(self) -> int:
        """Lanes at either end of a warp whose results nobody uses: of a group alone, which has no columns beside its own."""
        return 1 if self.groups == 1 else 0

    def own_lanes(self, radius: int) -> tuple[int, int]:
        """First lane and number of lanes of a warp with columns that are stored; the others are composed for these."""
        return radius + self.margin, LANES - max(2 * (radius + self.margin), 1)


def tile(radius: int) -> Tile:
    """The fastest of those measured on an H200 whose values fit into registers."""
    if radius <= 1:
        return Tile(2, 2, block_size(5, least=2), 4)
    return Tile(1, block_size(8, least=3), block_size(3, least=2), 2)


def launch_grid(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes per block, blocks and threads of ``compose_smooth``, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    t = tile(radius)
    across, down = -(-nx // (t.groups * t.own_lanes(radius)[1])), -(-ny // (t.height - 2 * radius))
    length = min(MAX_PLANES, planes_per_block(nz, across * down, t.blocks, radius))
    return np.int32(length), (across, down, -(-nz // length)), (t.width, t.lines, 1)


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
    return present_plane(int32(clamp(int32(k + first), whole) - first), edge)


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
def moments_address(d, base):
    """The address of moments, from which the direction follows."""
    return address(d[0], base)


@formula
def as_it_is(dz, dy, dx, most):
    """A step that is short enough."""
    return dz, dy, dx


@formula
def shorten(dz, dy, dx, most):
    """A vector with the same direction and at most this length."""
    square = fma(dz, dz, fma(dy, dy, dx * dx))
    part = divide_normal(most, sqrt_fast(square)) if square > most * most else ONE
    return part * dz, part * dy, part * dx


@formula
def load_rows(load_value, where, offsets, values, c):
    """Component c of some voxels."""
    for e in range(len(offsets)):
        values[3 * e + c] = load_value(where, offsets[e])


@formula
def store_plane(shared, slot, thread, j, values, width, height, step):
    """Component after component, every ``step``-th row of a plane of u from the j-th on, as ``load_plane`` loads it."""
    area = width * height
    for e in range(len(values) // 3):
        if (e + 1) * step <= height or uint32(j + uint32(e * step)) < uint32(height):
            for c in range(3):
                shared[uint64(uint32(slot + thread)) + uint64(c * area + e * step * width)] = values[3 * e + c]


@formula
def load_plane(u, base, size, offsets, j, values, height, step):
    """Load what ``store_plane`` stores."""
    for c in range(3):
        where = address(u, base + uint64(c) * size)
        for e in range(len(offsets)):
            if (e + 1) * step <= height or uint32(j + uint32(e * step)) < uint32(height):
                values[3 * e + c] = load(where, offsets[e])


@formula
def clear_rows(values, flags, rows):
    """Zero in the rows whose bit is not set."""
    for e in range(rows):
        if uint32(flags & uint32(IN_IMAGE << e)) == uint32(0):
            values[3 * e], values[3 * e + 1], values[3 * e + 2] = ZERO, ZERO, ZERO


@formula
def clear_rim(mid, x, j, width, rows, radius):
    """Zero the rows before the first and after the last one, which no warp writes and whose sums are not stored."""
    if j == uint32(0):
        for c in range(3):
            for q in range(radius):
                mid[uint64(x) + uint64((c * rows + q) * width)] = ZERO
                mid[uint64(x) + uint64((c * rows + rows - 1 - q) * width)] = ZERO


@formula
def store_rows(composed, base, size, offsets, flags, norms, values):
    """Store the rows that are this thread's, multiplied by the norms."""
    first, second = address(composed, base), address(composed, base + size)
    third = address(composed, base + uint64(2) * size)
    for e in range(len(offsets)):
        if uint32(flags & uint32(OWN << e)) != uint32(0):
            store(first, offsets[e], values[3 * e] * norms[e])
            store(second, offsets[e], values[3 * e + 1] * norms[e])
            store(third, offsets[e], values[3 * e + 2] * norms[e])


def launch_bounds(radius, mixed=False, gated=False, coherent=False, shortened=False):
    """Threads of a block, and blocks of a multiprocessor; to shorten a step takes more registers."""
    t = tile(radius)
    return t.width * t.lines, min(t.blocks, 3) if shortened else t.blocks


@cooperative_kernel(launch_bounds=launch_bounds)
def compose_smooth(radius, mixed=False, gated=False, coherent=False, shortened=False):
    """``u <- G (s d + u o (Id + s d))``, s d at most half a voxel: 36 bytes per voxel.

        A block composes a ``tile``, whose ``radius`` outermost rows and columns are for their neighbours only. Three planes of
    u are in shared memory, clamped to the global grid, because a step is shorter than a voxel. The filter along x exchanges
    values between lanes. Those along y and z use registers, and shared memory for the rows of other warps. Arguments: length,
    n, edge, weights, norm_z, norm_y, norm_x as in ``smooth_adam``; first (global plane at plane 0 of the arrays), whole (planes
    of the global grid; int32), half_step (float32), longest (1,) float32, d, u, composed (3 N,). ``mixed``: instead of d the
    moments, rates and clock of ``smooth_adam``, from which the direction is computed again, ``gated`` and ``coherent`` as there.
    ``shortened``: s d is cut to half_step where it is longer.
    """
    r, taps, t = radius, 2 * radius + 1, tile(radius)
    groups, rows, steps, height, width, lanes = t.groups, t.rows, t.lines, t.height, t.width, LANES
    first_lane, own_lanes = t.own_lanes(radius)
    shift = 1 - t.margin  # from a lane to its column of u
    rows_u, rows_mid = height + 2, height + 2 * r
    area, area_mid = width * rows_u, width * rows_mid
    loads, size_u, size_mid = -(-rows_u // steps), 9 * area, 3 * area_mid
    loads_u, loads_d, size_sums, size_line = 3 * loads, 3 * rows, max(1, 3 * rows * (taps - 1)), rows + 2 * r
    shuffled = WARP_SHUFFLE
    kind = uint32 if mixed else float32
    again = (load_gated_corrections, gated_direction_of_words) if gated else (load_corrections, direction_of_words)
    again = (load_gated_corrections, packed_coherent_direction_of) if coherent else again
    limited = shorten if shortened else as_it_is
    load_rates, decode = again if mixed else (no_corrections, stored_direction)
    direction_address, load_direction = (moments_address, load_word) if mixed else (address, load)

    @formula
    def along(mid, to, i, values, weights):
        """The filter along x in shared memory, without warp shuffles."""
        for e in range(rows):
            for c in range(3):
                mid[to + uint64(c * area_mid + e * width)] = values[3 * e + c]
        cuda.syncthreads()
        for e in range(rows):
            for c in range(3):
                at = int(to) + c * area_mid + e * width
                total = weights[r] * mid[at]
                for q in range(1, r + 1):
                    total += weights[r - q] * mid[at - min(q, int(i))] + weights[r + q] * mid[at + min(q, lanes - 1 - int(i))]
                values[3 * e + c] = total
        cuda.syncthreads()

    @formula
    def compose_rows(shared, corner, slots, words, corrections, scale, half_step, values):
        """``s d + u o (Id + s d)`` in the rows of a thread."""
        below, level, above = slots
        for e in range(rows):
            dz, dy, dx = decode(words[3 * e], words[3 * e + 1], words[3 * e + 2], corrections)
            dz, dy, dx = limited(scale * dz, scale * dy, scale * dx, half_step)
            bz, wz = lower_neighbour(dz)
            by, wy = lower_neighbour(dy)
            bx, wx = lower_neighbour(dx)
            at = uint32(corner - by * uint32(width) - bx)
            p0 = uint64(uint32(at + (below if bz else level))) + uint64(e * width)
            p1 = uint64(uint32(at + (level if bz else above))) + uint64(e * width)
            values[3 * e] = dz + interpolate_shared(shared, p0, p1, width, wz, wy, wx)
            values[3 * e + 1] = dy + interpolate_shared(shared, p0 + uint64(area), p1 + uint64(area), width, wz, wy, wx)
            values[3 * e + 2] = dx + interpolate_shared(shared, p0 + uint64(2 * area), p1 + uint64(2 * area), width, wz, wy, wx)

    @formula
    def exchange_rows(mid, to, values):
        """Write the rows that other warps need to shared memory."""
        for e in range(rows):
            if e < r or e >= rows - r:
                for c in range(3):
                    mid[to + uint64(c * area_mid + e * width)] = values[3 * e + c]

    @formula
    def filter_plane(mid, to, line, sums, weights, values):
        """The filters along y and z; ``values`` becomes the rows that are ``radius`` planes before."""
        for c in range(3):
            for q in range(r):
                line[q] = mid[to + uint64(c * area_mid) - uint64((r - q) * width)]
                line[r + rows + q] = mid[to + uint64(c * area_mid + (rows + q) * width)]
            for e in range(rows):
                line[r + e] = values[3 * e + c]
            for e in range(rows):
                start = (3 * e + c) * (taps - 1)
                values[3 * e + c] = push_plane(sums, start, filter_sum(line, uint64(e), 1, weights, taps), weights, taps)

    def body(length, n, edge, weights, norm_z, norm_y, norm_x, first, whole, half_step, longest, d, u, composed):
        mid = cuda.shared.array(size_mid, float32)
        shared_u = cuda.shared.array(size_u, float32)
        sums, next_d = cuda.local.array(size_sums, float32), cuda.local.array(loads_d, kind)
        next_u, values = cuda.local.array(loads_u, float32), cuda.local.array(loads_d, float32)
        line, norms = cuda.local.array(size_line, float32), cuda.local.array(rows, float32)
        offsets_u, offsets_d = cuda.local.array(loads, uint32), cuda.local.array(rows, uint32)
        x, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        group, i = uint32(x // uint32(lanes)), uint32(x % uint32(lanes))
        left = int32(cuda.blockIdx.x) * int32(groups * own_lanes) - int32(r + 1)
        top = int32(cuda.blockIdx.y) * int32(height - 2 * r) - int32(r)
        ny, nx = int32(n[2]), int32(n[3])
        place = int32(group) * int32(own_lanes) + int32(i) + int32(shift)  # column of u
        col, row = left + place, top + int32(j) * int32(rows)
        place = min(max(place, int32(1)), int32(width - 2))
        loaded_col, own_col = clamp(int32(left + int32(x)), nx), clamp(int32(col), nx)
        border = left < int32(0) or top < int32(0) or left + int32(width) > nx or top + int32(height) > ny
        for e in range(loads):
            at_y = clamp(int32(top + int32(j) + int32(e * steps - 1)), ny)
            offsets_u[e] = held(uint32(at_y * nx + loaded_col))
        flags = uint32(0)  # IN_IMAGE << e: row e is in the image;  OWN << e: this thread stores it
        for e in range(rows):
            at_y, own_row = row + int32(e), uint32(j * uint32(rows) + uint32(e))
            offsets_d[e] = held(uint32(clamp(int32(at_y), ny) * nx + own_col))
            if uint32(at_y) < n[2] and uint32(col) < n[3]:
                flags |= uint32(IN_IMAGE << e)
                if uint32(own_row - uint32(r)) < uint32(height - 2 * r) and uint32(i - uint32(first_lane)) < uint32(own_lanes):
                    flags |= uint32(OWN << e)
        flags = held(flags)
        plane = uint64(n[2]) * uint64(n[3])
        size = plane * uint64(edge)
        scale, corrections = half_step / max(ONE, sqrt_fast(longest[0])), load_rates(d)
        low = int32(int32(n[0]) + int32(cuda.blockIdx.z) * length)
        stop = int32(min(int32(low + length), int32(n[0] + n[1])))
        for q in range(size_sums):
            sums[q] = ZERO
        thread = held(uint32(j * uint32(width) + x))
        corner = held(uint32(uint32(j * uint32(rows) + uint32(1)) * uint32(width) + uint32(place)))
        to = uint64(held(uint32(uint32(j * uint32(rows) + uint32(r)) * uint32(width) + x)))
        clear_rim(mid, x, j, width, rows_mid, r)
        below, level, above = uint32(0), uint32(3 * area), uint32(6 * area)
        k = int32(low - int32(r))
        load_plane(u, plane * clamped_plane(int32(k - int32(1)), first, whole, edge), size, offsets_u, j, next_u, rows_u, steps)
        store_plane(shared_u, below, thread, j, next_u, width, rows_u, steps)
        load_plane(u, plane * clamped_plane(k, first, whole, edge), size, offsets_u, j, next_u, rows_u, steps)
        store_plane(shared_u, level, thread, j, next_u, width, rows_u, steps)
        load_plane(u, plane * clamped_plane(int32(k + int32(1)), first, whole, edge), size, offsets_u, j, next_u, rows_u, steps)
        base = plane * present_plane(k, edge)
        for c in range(3):
            load_rows(load_direction, direction_address(d, base + uint64(c) * size), offsets_d, next_d, c)
        while k < int32(stop + int32(r)):
            store_plane(shared_u, above, thread, j, next_u, width, rows_u, steps)
            cuda.syncthreads()
            after = plane * clamped_plane(int32(k + int32(2)), first, whole, edge)
            load_plane(u, after, size, offsets_u, j, next_u, rows_u, steps)
            compose_rows(shared_u, corner, (below, level, above), next_d, corrections, scale, half_step, values)
            if border or uint32(k) >= edge:
                clear_rows(values, flags if uint32(k) < edge else uint32(0), rows)
            k = int32(k + int32(1))
            base = plane * present_plane(k, edge)
            for c in range(3):
                load_rows(load_direction, direction_address(d, base + uint64(c) * size), offsets_d, next_d, c)
            if shuffled:
                for q in range(loads_d):
                    values[q] = filter_lanes(values[q], weights, r)
            else:
                along(mid, to, i, values, weights)
            exchange_rows(mid, to, values)
            cuda.syncthreads()
            below, level, above = level, above, below
            filter_plane(mid, to, line, sums, weights, values)
            z = int32(k - int32(r + 1))
            if z >= low:
                for e in range(rows):
                    norms[e] = norm_z[z]
                if border:
                    norm = norm_x[own_col]
                    for e in range(rows):
                        norms[e] = norm * norm_y[clamp(int32(row + int32(e)), ny)] * norms[e]
                store_rows(composed, plane * uint64(uint32(z)), size, offsets_d, flags, norms, values)

    return body

"""Window sums on a GPU: a block of threads owns a tile of the (y, x) plane and moves along z.

Each plane is loaded into shared memory once, with the border that a window needs. A thread sums windows along x, four neighbours
at a time, then windows along y, ``rows`` neighbours at a time, and keeps the sums of the last 2 radius + 1 planes in registers;
sums that neighbours share are computed once. A plane's slot in this ring is its global number modulo the length of the ring, and
the ring is summed from its first slot to its last: the order of additions depends on a voxel's place in the grid only.
"""

from __future__ import annotations

from numba import float32, int32, uint32, uint64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import clamp
from daskreg.kernels.intrinsics.memory import address, held, load, load_vector, store_vector

ONE = float32(1)
TILE_X = 32  # voxels of a tile along x
GROUP = 4  # neighbours along x per thread


def tile_rows(radius: int) -> int:
    """Rows of a tile of ``lncc_center_tiled`` and ``lncc_factors_tiled``; those of ``lncc_gradient_tiled`` have 16."""
    return 16 if radius <= 4 else 8


def rows_per_thread(radius: int) -> int:
    """Rows per thread in these kernels: the ring must fit into registers."""
    return 2 if radius <= 3 else 1


def window_threads(radius: int) -> int:
    """Threads of their blocks, along x."""
    return TILE_X * tile_rows(radius) // rows_per_thread(radius)


def window_blocks(radius: int, planes: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """Blocks, x first, for ``depth`` planes each; there are blocks[0] * blocks[1] tiles per plane."""
    return -(-nx // TILE_X), -(-ny // tile_rows(radius)), max(1, -(-planes // depth))


def window_bounds(radius: int, masked: bool, half: bool = False) -> tuple[int, int]:
    """Most threads per block, fewest blocks per multiprocessor: 128 registers per thread, or all for the largest windows."""
    return window_threads(radius), 2 if radius <= 3 else 1


@formula
def tile_offsets(offsets, t, threads, height, width, top, left, ny, nx):
    """Offsets in a plane, clamped to it, of the voxels that a thread loads into shared memory; returns bits that say which are
    in the grid.
    """
    inside = uint32(0)
    for s in range(len(offsets)):
        e = uint32(t + uint32(s * threads))
        row = int32(e // uint32(width))
        y, x = int32(top + row), int32(left + int32(e % uint32(width)))
        offsets[s] = clamped_offset(min(y, int32(top + int32(height - 1))), x, ny, nx)
        if row < int32(height) and int32(0) <= y < ny and int32(0) <= x < nx:
            inside |= uint32(1 << s)
    return held(uint32(inside))


@formula
def clamped_offset(y, x, ny, nx):
    """The offset in a plane of the voxel of the grid nearest to y, x, in a register."""
    return held(uint32(uint32(clamp(y, ny)) * uint32(nx) + uint32(clamp(x, nx))))


@formula
def has_bit(bits, s):
    """Whether bit s is set."""
    return uint32(bits & uint32(1 << s)) != uint32(0)


@formula
def clear_shared(shared, t, threads, size):
    """Zero the first ``size`` numbers, for voxels outside the grid, which no thread writes."""
    for s in range(-(-size // threads)):
        if int32(t) + int32(s * threads) < int32(size):
            shared[uint64(t) + uint64(s * threads)] = float32(0)


@formula
def group_offsets(t, width):
    """The offsets of a thread's four neighbours in a tile with border, ``width`` voxels wide, and without."""
    row, x = uint32(t >> uint32(3)), uint32(uint32(t & uint32(7)) * uint32(GROUP))
    to = held(uint32(row * uint32(TILE_X) + x))
    return uint64(uint32(to + uint32(row * uint32(width - TILE_X)))), uint64(to)


@formula
def sum_x(a, first, radius, mid, to):
    """Sums along x of four neighbouring windows from ``a[first]`` on; what they share is added once."""
    k = 2 * radius + 1
    if k > 3:
        common = a[first + 3]
        for q in range(4, k):
            common += a[first + q]
        low = a[first + 1] + a[first + 2]
        high = a[first + k] + a[first + k + 1]
        store_vector(mid, to, common + (a[first] + low), common + (low + a[first + k]), common + (a[first + 2] + high),
                   common + (high + a[first + k + 2]))  # fmt: skip
    else:
        inner, outer = a[first + 1] + a[first + 2], a[first + 3] + a[first + 4]
        store_vector(mid, to, a[first] + inner, inner + a[first + 3], a[first + 2] + outer, outer + a[first + 5])


@formula
def load_row(raw, at, values):
    """Load neighbours along x into registers, four at a time."""
    for q in range(0, len(values), 4):
        values[q], values[q + 1], values[q + 2], values[q + 3] = load_vector(raw, at + uint64(q))


@formula
def sum_y(mid, at, field, height, radius, rows, sums):
    """Sums along y of a field for the rows of a thread; what they share is added once."""
    k, start = 2 * radius + 1, field * height * TILE_X
    if rows == 2:
        common = mid[at + uint64(start + TILE_X)]
        for q in range(2, k):
            common += mid[at + uint64(start + q * TILE_X)]
        sums[2 * field] = mid[at + uint64(start)] + common
        sums[2 * field + 1] = common + mid[at + uint64(start + k * TILE_X)]
    else:
        common = mid[at + uint64(start)]
        for q in range(1, k):
            common += mid[at + uint64(start + q * TILE_X)]
        sums[field] = common


@formula
def load_own(load_fixed, base, offsets, masked, fixed, weight, moved, fixed_values, moved_values, weights):
    """Load the voxels of a thread, fixed ones with ``load_fixed``; weights are 1 without a mask. Returns the address of moved."""
    from_f, from_m = address(fixed, base), address(moved, base)
    from_w = address(weight, base) if masked else from_f
    for q in range(len(offsets)):
        fixed_values[q], moved_values[q] = load_fixed(from_f, offsets[q]), load(from_m, offsets[q])
        weights[q] = load(from_w, offsets[q]) if masked else ONE
    return from_m


@formula
def push_sum(ring, prefix, sums, slot, q, k):
    """Put the q-th sum of a plane into its slot; ``sums[q]`` becomes the sum over the last k planes.

    Planes of the current round are added as they come, those of the previous round from its end: three additions per plane,
    whatever k. All indices are constants once loops are unrolled, so every slot is a register.
    """
    ring[q * k + slot] = sums[q]
    if slot > 0:
        sums[q] = prefix[q] + sums[q]
    prefix[q] = sums[q]
    if slot < k - 1:
        sums[q] = prefix[q] + ring[q * k + slot + 1]
    else:
        for s in range(1, k):
            ring[q * k + k - 1 - s] += ring[q * k + k - s]


@formula
def push_plane(ring, prefix, sums, slot, k, tile):
    """``push_sum`` for all sums of a plane."""
    for q in range(len(prefix)):
        push_sum(ring, prefix, sums, slot, q, k)


@formula
def sum_and_push_plane(ring, prefix, sums, slot, k, tile):
    """``push_plane`` for fields that are summed along y first;  tile: what ``sum_y`` takes, and the number of fields."""
    mid, column, fields, height, radius, rows = tile
    for q in range(len(prefix)):
        if q % rows == 0 and q < fields * rows:
            sum_y(mid, column, q // rows, height, radius, rows, sums)
        push_sum(ring, prefix, sums, slot, q, k)


@formula
def push_among_four(push, ring, prefix, sums, slot, k, first_slot, tile):
    """``push`` for a slot known at run time, one of four."""
    if k <= first_slot + 2 or slot < uint32(first_slot + 2):
        if k <= first_slot + 1 or slot < uint32(first_slot + 1):
            push(ring, prefix, sums, first_slot, k, tile)
        else:
            push(ring, prefix, sums, first_slot + 1, k, tile)
    elif k <= first_slot + 3 or slot < uint32(first_slot + 3):
        push(ring, prefix, sums, first_slot + 2, k, tile)
    else:
        push(ring, prefix, sums, first_slot + 3, k, tile)


@formula
def push_any(push, ring, prefix, sums, slot, k, tile):
    """``push``, which is ``push_plane`` or ``sum_and_push_plane``, for a slot known at run time."""
    if k <= 4 or slot < uint32(4):
        push_among_four(push, ring, prefix, sums, slot, k, 0, tile)
    elif k <= 8 or slot < uint32(8):
        push_among_four(push, ring, prefix, sums, slot, k, 4, tile)
    elif k <= 12 or slot < uint32(12):
        push_among_four(push, ring, prefix, sums, slot, k, 8, tile)
    elif k <= 16 or slot < uint32(16):
        push_among_four(push, ring, prefix, sums, slot, k, 12, tile)
    else:
        push(ring, prefix, sums, 16, k, tile)

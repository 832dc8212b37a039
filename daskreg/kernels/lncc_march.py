"""Local correlation on a GPU: a block of threads owns a tile of the (y, x) plane and marches along z.

Each plane comes into shared memory once, with the rim that a window needs. There a thread adds up windows along x, four
neighbours at a time, then windows along y, ``rows`` neighbours at a time, and keeps the sums of the last 2 radius + 1 planes in
registers: sums that neighbours share are formed once. A plane's place in that ring is its number in the whole grid modulo the
ring's length, and the ring is added up from its first place to its last: the order of additions depends on where a voxel lies in
the grid, and on nothing else.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from numba import float32, int32, uint32, uint64

from daskreg.kernels.launch import CUDA, DISABLED, formula, sweep
from daskreg.kernels.lncc import factors
from daskreg.kernels.wide import load_four, store_four

ONE, NIL = float32(1), float32(0)
TILE_X, TILE_Y = 32, 16  # voxels of a plane that a block owns
GROUP = 4  # neighbours along x whose windows a thread adds up
offset = int if DISABLED else uint64  # of a voxel in a field: a block may hold more than 2^31


def window_rows(radius: int) -> int:
    """Rows a thread owns: its ring must fit into registers."""
    return 2 if radius <= 3 else 1


def window_threads(radius: int) -> int:
    """Threads of a block, along x."""
    return TILE_X * TILE_Y // window_rows(radius)


def window_blocks(planes: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """Blocks that march through ``depth`` planes each."""
    return -(-nx // TILE_X), -(-ny // TILE_Y), max(1, -(-planes // depth))


@formula
def place(at, t, threads, height, width, top, left, ny, nx):
    """Where a thread finds what it brings into shared memory: offsets in a plane; bits, which of them lie in the grid."""
    bits = uint32(0)
    for s in range(len(at)):
        e = uint32(t + uint32(s * threads))
        row, col = int32(e // uint32(width)), int32(e % uint32(width))
        y, x = int32(top + min(row, int32(height - 1))), int32(left + col)
        if int32(0) <= y < ny and int32(0) <= x < nx and row < int32(height):
            bits |= uint32(1) << uint32(s)
        at[s] = uint32(min(max(y, int32(0)), ny - int32(1))) * uint32(nx) + uint32(min(max(x, int32(0)), nx - int32(1)))
    return bits


@formula
def fetch_pair(base, at, masked, fixed, weight, moved, still, value, w):
    """Load a plane's voxels into registers."""
    for s in range(len(at)):
        o = offset(base + offset(at[s]))
        still[s], value[s] = fixed[o], moved[o]
        if masked:
            w[s] = weight[o]


@formula
def stage_pair(raw, t, threads, size, bits, masked, still, value, w):
    """Put F, M and w into shared memory, zeros out of the grid and of the domain; whether a voxel of the grid has no value."""
    lacks = int32(0)
    for s in range(len(still)):
        e = uint32(t + uint32(s * threads))
        there = (bits >> uint32(s)) & uint32(1) != uint32(0)
        real = value[s] == value[s]
        use = there and real
        if there and not real:
            lacks = int32(1)
        raw[e] = still[s] if use else NIL
        raw[uint32(e + uint32(size))] = value[s] if use else NIL
        if masked:
            raw[uint32(e + uint32(2 * size))] = w[s] if use else NIL
        else:
            raw[uint32(e + uint32(2 * size))] = ONE if use else NIL
    return lacks


@formula
def sum_windows(a, first, radius, mid, to):
    """Windows of four neighbours along x from ``a[first]`` on; what they share is added once."""
    k = 2 * radius + 1
    if k > 3:
        common = a[first + 3]
        for q in range(4, k):
            common += a[first + q]
        low = a[first + 1] + a[first + 2]
        high = a[first + k] + a[first + k + 1]
        store_four(mid, to, common + (a[first] + low), common + (low + a[first + k]), common + (a[first + 2] + high),
                   common + (high + a[first + k + 2]))  # fmt: skip
    else:
        inner, outer = a[first + 1] + a[first + 2], a[first + 3] + a[first + 4]
        store_four(mid, to, a[first] + inner, inner + a[first + 3], a[first + 2] + outer, outer + a[first + 5])


@formula
def read_row(raw, at, a):
    """Neighbours along x into registers, four at a time."""
    for q in range(0, len(a), 4):
        a[q], a[q + 1], a[q + 2], a[q + 3] = load_four(raw, uint32(at + uint32(q)))


@formula
def product_windows(raw, size, width, t, radius, lead, height, counted, masked, a, b, w, p, mid):
    """Windows along x of F, M, FF, MM, FM and, where ``counted``, w: a thread four neighbours of a row."""
    row, group, plane = uint32(t >> uint32(3)), uint32(t & uint32(7)), height * TILE_X
    if row < uint32(height):
        at = uint32(row * uint32(width) + group * uint32(GROUP))
        to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
        read_row(raw, at, a)
        if masked:
            read_row(raw, at + uint32(size), b)
            read_row(raw, at + uint32(2 * size), w)
            for q in range(len(a)):
                p[q] = w[q] * a[q] * a[q]
            sum_windows(p, lead, radius, mid, to + uint32(2 * plane))
            for q in range(len(a)):
                p[q] = w[q] * b[q] * b[q]
            sum_windows(p, lead, radius, mid, to + uint32(3 * plane))
            for q in range(len(a)):
                a[q] = w[q] * a[q]
                p[q] = a[q] * b[q]
            sum_windows(p, lead, radius, mid, to + uint32(4 * plane))
            for q in range(len(a)):
                b[q] = w[q] * b[q]
            sum_windows(a, lead, radius, mid, to)
            sum_windows(b, lead, radius, mid, to + uint32(plane))
        else:
            sum_windows(a, lead, radius, mid, to)
            for q in range(len(a)):
                p[q] = a[q] * a[q]
            sum_windows(p, lead, radius, mid, to + uint32(2 * plane))
            read_row(raw, at + uint32(size), b)
            for q in range(len(a)):
                p[q] = a[q] * b[q]
            sum_windows(p, lead, radius, mid, to + uint32(4 * plane))
            sum_windows(b, lead, radius, mid, to + uint32(plane))
            for q in range(len(a)):
                p[q] = b[q] * b[q]
            sum_windows(p, lead, radius, mid, to + uint32(3 * plane))
        if counted:
            read_row(raw, at + uint32(2 * size), p)
            sum_windows(p, lead, radius, mid, to + uint32(5 * plane))


@formula
def sum_rows(mid, at, field, height, radius, rows, now):
    """Windows along y of a field for the rows that a thread owns; what they share is added once."""
    k, start = 2 * radius + 1, field * height * TILE_X
    if rows == 2:
        low = mid[uint32(at + uint32(start))]
        common = mid[uint32(at + uint32(start + TILE_X))]
        for q in range(2, k):
            common += mid[uint32(at + uint32(start + q * TILE_X))]
        now[2 * field] = low + common
        now[2 * field + 1] = common + mid[uint32(at + uint32(start + k * TILE_X))]
    else:
        common = mid[uint32(at + uint32(start))]
        for q in range(1, k):
            common += mid[uint32(at + uint32(start + q * TILE_X))]
        now[field] = common


@formula
def remember(ring, now, slot, k):
    """Put a plane's sums into its place; written so that every index is a constant, hence every place a register."""
    for q in range(len(ring) // k):
        ring[q * k + slot] = now[q]


@formula
def recall(ring, q, k):
    """Sum over the ring."""
    total = ring[q * k]
    for s in range(1, k):
        total += ring[q * k + s]
    return total


@formula
def store_slope(out, o, w, still, value, d, k, c):
    """The centre window's share of the gradient times N."""
    out[o] = -(w * (still * (w * d) - value * (w * k) + w * c)) if value == value else NIL


@formula
def store_factors(out, o, w, still, value, d, k, c):
    """What the exact gradient needs of a window."""
    out[0, o], out[1, o], out[2, o] = w * d, w * k, w * c


@formula
def fold(terms, parts, t, threads):
    """The last 64 threads add up what all threads left for a plane, two sums of ``threads`` terms, to 32 parts each."""
    if t >= uint32(threads - 64):
        e = uint32(t - uint32(threads - 64))
        start = uint32((e >> uint32(5)) * uint32(threads) + (e & uint32(31)))
        total = terms[start]
        for q in range(1, threads // 32):
            total += terms[uint32(start + uint32(32 * q))]
        parts[e] = total


@formula
def finish(parts, sums, plane, tile, t, threads):
    """The last two threads add up the parts."""
    if t >= uint32(threads - 2):
        q = uint32(t - uint32(threads - 2))
        total = parts[uint32(q * uint32(32))]
        for e in range(1, 32):
            total += parts[uint32(q * uint32(32) + uint32(e))]
        sums[plane, tile, q] = total


@formula
def within(i, radius, n):
    """How many of a window's voxels around i lie in 0 .. n - 1."""
    return int32(min(i + int32(radius), n - int32(1)) - max(i - int32(radius), int32(0)) + int32(1))


def march(radius: int, masked: bool, exact: bool) -> FunctionType:
    """A body that finds the window sums of every voxel and stores what follows from them."""
    k, rows, threads = 2 * radius + 1, window_rows(radius), window_threads(radius)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, TILE_Y + 2 * radius, GROUP + 2 * pad, pad - radius
    slots = -(-width * height // threads)
    size = slots * threads
    raws, mids, twice = 3 * size, 6 * height * TILE_X, 2 * threads
    spare = k * rows * threads if rows > 1 else 1  # where registers are short, the ring of w is in shared memory
    kept = 5 * rows if rows > 1 else 6 * rows
    places, news, full = kept * k, 6 * rows, 2**k - 1
    masks, reach_w = (slots, reach) if masked else (1, 1)
    store = (store_factors if exact else store_slope).form(CUDA)

    @formula
    def step(slot, z, flags, grid, thread, arrays, tile_store, registers, epsilon, flat):
        """A plane comes in; the voxels ``radius`` planes behind are done."""
        first, start, ny, nx, held, floor_size = grid
        t, x, y, below, here, bits, tile = thread
        fixed, weight, moved, out, sums = arrays
        raw, mid, terms, parts, counts = tile_store
        at, still, value, mask, a, b, w, p, ring, now, own_f, own_m, own_w, area = registers
        inside, done = int32(0) <= z < held, int32(z - int32(radius))
        lacks = stage_pair(raw, t, threads, size, bits if inside else uint32(0), masked, still, value, mask)
        lacking = cuda.syncthreads_or(lacks) != int32(0)  # noqa: F821
        flags = uint32(((flags << uint32(1)) | (uint32(1) if lacking else uint32(0))) & uint32(full))
        fold(terms, parts, t, threads)
        product_windows(raw, size, width, t, radius, lead, height, masked or lacking, masked, a, b, w, p, mid)
        for q in range(rows):
            own_f[q], own_m[q], own_w[q] = NIL, NIL, NIL
            if done >= start and x < nx and int32(y + int32(q)) < ny:
                o = offset(offset(done) * floor_size + here + offset(q) * offset(nx))
                own_f[q], own_m[q] = fixed[o], moved[o]
                own_w[q] = weight[o] if masked else ONE
        coming = int32(min(max(z + int32(1), int32(0)), held - int32(1)))
        fetch_pair(offset(coming) * floor_size, at, masked, fixed, weight, moved, still, value, mask)
        cuda.syncthreads()  # noqa: F821
        if done > start:
            finish(parts, sums, uint32(done - int32(1) - first), tile, t, threads)
        for field in range(5):
            sum_rows(mid, below, field, height, radius, rows, now)
        if masked or lacking:
            sum_rows(mid, below, 5, height, radius, rows, now)
        else:
            for q in range(rows):
                now[5 * rows + q] = area[q] if inside else NIL
        remember(ring, now, slot, k)
        if rows > 1:
            for q in range(rows):
                counts[uint32(t + uint32((slot * rows + q) * threads))] = now[5 * rows + q]
        if done >= start:
            correlation, weights = NIL, NIL
            for q in range(rows):
                n = float32(within(done, radius, held)) * area[q]
                if masked or flags != uint32(0):
                    if rows > 1:
                        n = counts[uint32(t + uint32(q * threads))]
                        for s in range(1, k):
                            n += counts[uint32(t + uint32((s * rows + q) * threads))]
                    else:
                        n = recall(ring, kept - 1, k)
                real = own_m[q] == own_m[q]
                v = own_w[q] if real else NIL
                cc, d, g, c = factors(n, recall(ring, q, k), recall(ring, rows + q, k), recall(ring, 2 * rows + q, k),
                                      recall(ring, 3 * rows + q, k), recall(ring, 4 * rows + q, k), epsilon, flat)  # fmt: skip
                if x < nx and int32(y + int32(q)) < ny:
                    o = offset(offset(done) * floor_size + here + offset(q) * offset(nx))
                    store(out, o, v, own_f[q], own_m[q], d, g, c)
                correlation += v * cc
                weights += v
            terms[t], terms[uint32(t + uint32(threads))] = correlation, weights
        return flags

    def body(first, planes, ny, nx, held, origin, depth, epsilon, flat, fixed, weight, moved, out, sums):
        raw = cuda.shared.array(raws, float32, 16)  # noqa: F821
        mid = cuda.shared.array(mids, float32, 16)  # noqa: F821
        terms = cuda.shared.array(twice, float32)  # noqa: F821
        parts = cuda.shared.array(64, float32)  # noqa: F821
        counts = cuda.shared.array(spare, float32)  # noqa: F821
        at = cuda.local.array(slots, uint32)  # noqa: F821
        still = cuda.local.array(slots, float32)  # noqa: F821
        value = cuda.local.array(slots, float32)  # noqa: F821
        mask = cuda.local.array(masks, float32)  # noqa: F821
        a = cuda.local.array(reach, float32)  # noqa: F821
        b = cuda.local.array(reach, float32)  # noqa: F821
        w = cuda.local.array(reach_w, float32)  # noqa: F821
        p = cuda.local.array(reach, float32)  # noqa: F821
        ring = cuda.local.array(places, float32)  # noqa: F821
        now = cuda.local.array(news, float32)  # noqa: F821
        own_f = cuda.local.array(rows, float32)  # noqa: F821
        own_m = cuda.local.array(rows, float32)  # noqa: F821
        own_w = cuda.local.array(rows, float32)  # noqa: F821
        area = cuda.local.array(rows, float32)  # noqa: F821
        t = uint32(cuda.threadIdx.x)  # noqa: F821
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * TILE_Y)  # noqa: F821
        tile = uint32(cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x)  # noqa: F821
        start = int32(first + int32(cuda.blockIdx.z) * depth)  # noqa: F821
        stop = int32(min(start + depth, first + planes))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, below = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        floor_size, here = offset(ny) * offset(nx), offset(y) * offset(nx) + offset(x)
        bits = place(at, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            area[q] = float32(within(int32(y + int32(q)), radius, ny) * within(x, radius, nx))
        for q in range(kept * k):
            ring[q] = NIL
        if rows > 1:
            for q in range(k * rows):
                counts[uint32(t + uint32(q * threads))] = NIL
        grid = first, start, ny, nx, held, floor_size
        thread = t, x, y, below, here, bits, tile
        arrays = fixed, weight, moved, out, sums
        tile_store = raw, mid, terms, parts, counts
        registers = at, still, value, mask, a, b, w, p, ring, now, own_f, own_m, own_w, area
        z, flags = int32(start - int32(radius)), uint32(0)  # the plane that comes in
        fetch_pair(offset(max(z, int32(0))) * floor_size, at, masked, fixed, weight, moved, still, value, mask)
        begin, end = z, int32(stop + int32(radius))
        z = int32(z - int32(origin + z + int32(k)) % int32(k))
        while z < end:
            if z >= begin:
                flags = step(0, z, flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 1 and begin <= z + int32(1) < end:
                flags = step(1, int32(z + int32(1)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 2 and begin <= z + int32(2) < end:
                flags = step(2, int32(z + int32(2)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 3 and begin <= z + int32(3) < end:
                flags = step(3, int32(z + int32(3)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 4 and begin <= z + int32(4) < end:
                flags = step(4, int32(z + int32(4)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 5 and begin <= z + int32(5) < end:
                flags = step(5, int32(z + int32(5)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 6 and begin <= z + int32(6) < end:
                flags = step(6, int32(z + int32(6)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 7 and begin <= z + int32(7) < end:
                flags = step(7, int32(z + int32(7)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 8 and begin <= z + int32(8) < end:
                flags = step(8, int32(z + int32(8)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 9 and begin <= z + int32(9) < end:
                flags = step(9, int32(z + int32(9)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 10 and begin <= z + int32(10) < end:
                flags = step(10, int32(z + int32(10)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 11 and begin <= z + int32(11) < end:
                flags = step(11, int32(z + int32(11)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 12 and begin <= z + int32(12) < end:
                flags = step(12, int32(z + int32(12)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 13 and begin <= z + int32(13) < end:
                flags = step(13, int32(z + int32(13)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 14 and begin <= z + int32(14) < end:
                flags = step(14, int32(z + int32(14)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 15 and begin <= z + int32(15) < end:
                flags = step(15, int32(z + int32(15)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            if k > 16 and begin <= z + int32(16) < end:
                flags = step(16, int32(z + int32(16)), flags, grid, thread, arrays, tile_store, registers, epsilon, flat)
            z = int32(z + int32(k))
        cuda.syncthreads()  # noqa: F821
        fold(terms, parts, t, threads)
        cuda.syncthreads()  # noqa: F821
        finish(parts, sums, uint32(stop - int32(1) - first), tile, t, threads)

    return body


@sweep(launch_bounds=(512, 1))
def lncc_center(radius: int, masked: bool) -> FunctionType:
    """TODO"""
    return march(radius, masked, False)


@sweep(launch_bounds=(512, 1))
def lncc_factors_march(radius: int, masked: bool) -> FunctionType:
    """TODO"""
    return march(radius, masked, True)

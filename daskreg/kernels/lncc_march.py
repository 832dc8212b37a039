"""Local correlation on a GPU: a block of threads owns a tile of the (y, x) plane and marches along z.

Each plane comes into shared memory once, with the rim that a window needs. There a thread adds up windows along x, four
neighbours at a time, then windows along y, ``rows`` neighbours at a time, and keeps the sums of the last 2 radius + 1 planes in
registers: sums that neighbours share are formed once. A plane's place in that ring is its number in the whole grid modulo the
ring's length, and the ring is added up from its first place to its last: the order of additions depends on where a voxel lies in
the grid, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, int32, uint32, uint64

from daskreg.kernels.arithmetic import counted
from daskreg.kernels.difference import COUNT
from daskreg.kernels.half import halved, pixel, stored_as
from daskreg.kernels.launch import DISABLED, deep, formula, sweep
from daskreg.kernels.lncc import factors
from daskreg.kernels.wide import get, get_half, load_four, put, spot, store_four

ONE, NIL = float32(1), float32(0)
TILE_X = 32  # voxels of a row that a block owns
GROUP = 4  # neighbours along x whose windows a thread adds up
offset = int if DISABLED else uint64  # of a voxel in a field: a block may hold more than 2^31


def tile_rows(radius: int) -> int:
    """Rows that a block of ``lncc_center`` or ``lncc_factors_march`` owns; in ``lncc_slope_march`` it is always 16."""
    return 16 if radius <= 4 else 8


def rows_each(radius: int) -> int:
    """Rows that a thread owns there: its ring must fit into registers."""
    return 2 if radius <= 3 else 1


def window_threads(radius: int) -> int:
    """Threads of such a block, along x."""
    return TILE_X * tile_rows(radius) // rows_each(radius)


def window_blocks(radius: int, planes: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """Blocks, x first, that march through ``depth`` planes each; there are blocks[0] * blocks[1] tiles a plane."""
    return -(-nx // TILE_X), -(-ny // tile_rows(radius)), max(1, -(-planes // depth))


def slope_blocks(planes: int, ny: int, nx: int, depth: int) -> tuple[int, int, int]:
    """The same for ``lncc_slope_march``, of ``SLOPE_THREADS`` threads."""
    return window_blocks(1, planes, ny, nx, depth)


SLOPE_THREADS = window_threads(1)


def window_bounds(radius: int, masked: bool, unrolled: bool, half: bool = False) -> tuple[int, int]:
    """The most threads a block, the fewest blocks at once: 128 registers a thread, all there are for the largest windows."""
    return window_threads(radius), 2 if radius <= 3 else 1


@formula
def place(at, t, threads, height, width, top, left, ny, nx):
    """Where a thread finds what it brings into shared memory: offsets in a plane; bits, which of them lie in the grid."""
    bits = uint32(0)
    for s in range(len(at)):
        e = uint32(t + uint32(s * threads))
        row = int32(e // uint32(width))
        y, x = int32(top + row), int32(left + int32(e % uint32(width)))
        at[s] = uint32(uint32(max(y, int32(0))) * uint32(nx) + uint32(max(x, int32(0))))
        if row < int32(height) and int32(0) <= y < ny and int32(0) <= x < nx:
            bits |= uint32(1 << s)
    return uint32(bits)


@formula
def fetch_pair(load, none, base, at, bits, masked, fixed, weight, moved, still, value, w):
    """Load a plane's voxels into registers, F as ``load`` finds it; zeros out of the grid."""
    from_f, from_m = spot(fixed, base), spot(moved, base)
    from_w = spot(weight, base) if masked else from_f
    for s in range(len(at)):
        still[s], value[s] = none, NIL
        if masked:
            w[s] = NIL
        if uint32(bits & uint32(1 << s)) != uint32(0):
            still[s], value[s] = load(from_f, at[s]), get(from_m, at[s])
            if masked:
                w[s] = get(from_w, at[s])


@formula
def stage_pair(raw, t, threads, size, masked, still, value, w):
    """Put F, M and a mask into shared memory, zeros out of the domain; whether a voxel is out of it."""
    lacks = int32(0)
    for s in range(len(still)):
        e, real = uint32(t + uint32(s * threads)), value[s] == value[s]
        raw[e] = pixel(still[s]) if real else NIL
        raw[uint32(e + uint32(size))] = value[s] if real else NIL
        if masked:
            raw[uint32(e + uint32(2 * size))] = w[s] if real else NIL
        lacks = lacks if real else int32(1)
    return lacks


@formula
def stage_ones(raw, t, threads, size, bits, value):
    """Put w into shared memory, where there is no mask: 1 in the grid and the domain."""
    for s in range(len(value)):
        there = uint32(bits & uint32(1 << s)) != uint32(0) and value[s] == value[s]
        raw[uint32(t + uint32(2 * size + s * threads))] = ONE if there else NIL


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
def enter(ring, prefix, now, slot, k):
    """Put a plane's sums into their place; ``now`` becomes the sums over the last k planes.

    The planes of a round so far are added up as they come, those of the round before from its end: three additions a plane,
    whatever k. Every index is a constant once the loops are unrolled, hence every place a register.
    """
    for q in range(len(prefix)):
        ring[q * k + slot] = now[q]
        if slot > 0:
            now[q] = prefix[q] + now[q]
        prefix[q] = now[q]
        if slot < k - 1:
            now[q] = prefix[q] + ring[q * k + slot + 1]
        else:
            for s in range(1, k):
                ring[q * k + k - 1 - s] += ring[q * k + k - s]


@formula
def enter_four(ring, prefix, now, slot, k, place):
    """``enter`` at a place not known before."""
    if slot == uint32(place):
        enter(ring, prefix, now, place, k)
    elif k > place + 1 and slot == uint32(place + 1):
        enter(ring, prefix, now, place + 1, k)
    elif k > place + 2 and slot == uint32(place + 2):
        enter(ring, prefix, now, place + 2, k)
    elif k > place + 3 and slot == uint32(place + 3):
        enter(ring, prefix, now, place + 3, k)


@formula
def enter_any(ring, prefix, now, slot, k):
    """``enter`` at a place not known before."""
    if k <= 4 or slot < uint32(4):
        enter_four(ring, prefix, now, slot, k, 0)
    elif k <= 8 or slot < uint32(8):
        enter_four(ring, prefix, now, slot, k, 4)
    elif k <= 12 or slot < uint32(12):
        enter_four(ring, prefix, now, slot, k, 8)
    elif k <= 16 or slot < uint32(16):
        enter_four(ring, prefix, now, slot, k, 12)
    else:
        enter(ring, prefix, now, 16, k)


@formula
def one_field(out):
    """Where a scalar goes."""
    return out, out, out


@formula
def three_fields(out):
    """Where the components of a vector go."""
    return out[0], out[1], out[2]


@formula
def store_slope(spots, at, w, still, value, d, k, c):
    """The centre window's share of the gradient times N."""
    put(spots[0], at, -(w * (still * (w * d) - value * (w * k) + w * c)) if value == value else NIL)


@formula
def store_factors(spots, at, w, still, value, d, k, c):
    """What the exact gradient needs of a window."""
    put(spots[0], at, w * d)
    put(spots[1], at, w * k)
    put(spots[2], at, w * c)


@formula
def fold(terms, parts, plane, t, threads):
    """The last 64 threads add up what all threads left for a plane, two sums of ``threads`` terms, to 32 parts each."""
    if t >= uint32(threads - 64):
        e = uint32(t - uint32(threads - 64))
        start = uint32((e >> uint32(5)) * uint32(threads) + (e & uint32(31)))
        total = terms[start]
        for q in range(1, threads // 32):
            total += terms[uint32(start + uint32(32 * q))]
        parts[uint32(e + uint32((uint32(plane) & uint32(1)) * uint32(64)))] = total


@formula
def finish(parts, totals, own, plane, t, threads):
    """The last two threads add up the parts, in four chains, and count them where the plane is one of ``own``."""
    if t >= uint32(threads - 2) and own[0] <= plane < own[1]:
        q = uint32(t - uint32(threads - 2))
        at = uint32((uint32(plane) & uint32(1)) * uint32(64) + q * uint32(32))
        a, b, c, d = parts[at], parts[uint32(at + uint32(1))], parts[uint32(at + uint32(2))], parts[uint32(at + uint32(3))]
        for e in range(4, 32, 4):
            a += parts[uint32(at + uint32(e))]
            b += parts[uint32(at + uint32(e + 1))]
            c += parts[uint32(at + uint32(e + 2))]
            d += parts[uint32(at + uint32(e + 3))]
        cuda.atomic.add(totals, q, counted(((a + b) + (c + d)) * float32(COUNT)))  # noqa: F821


@formula
def within(i, radius, n):
    """How many of a window's voxels around i lie in 0 .. n - 1."""
    last, low = min(int32(i + int32(radius)), int32(n - int32(1))), max(int32(i - int32(radius)), int32(0))
    return int32(last - low + int32(1))


def march(radius: int, masked: bool, unrolled: bool, exact: bool, half: bool) -> Callable[..., None]:
    """A body that finds the window sums of every voxel and stores what follows from them."""
    (kind, none), load = stored_as(half), get_half if half else get  # F as it is stored
    k, rows, threads, tall = 2 * radius + 1, rows_each(radius), window_threads(radius), tile_rows(radius)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tall + 2 * radius, GROUP + 2 * pad, pad - radius
    slots = -(-width * height // threads)
    size = slots * threads
    raws, mids, twice = 3 * size, 6 * height * TILE_X, 2 * threads
    shared_counts = rows > 1  # where registers are short, the ring of w is in shared memory
    spare = k * rows * threads if shared_counts else 1
    kept = 5 * rows if shared_counts else 6 * rows
    places, news, full = kept * k, 6 * rows, 2**k - 1
    masks, reach_w = (slots, reach) if masked else (1, 1)
    put_in = enter if unrolled else enter_any
    store, split = (store_factors, three_fields) if exact else (store_slope, one_field)

    @formula
    def step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat):
        """A plane comes in; the voxels ``radius`` planes behind are done."""
        start, end, ny, nx, held, floor = grid
        t, x, y, below, bits = thread
        fixed, weight, moved, fields, totals, own = arrays
        raw, mid, terms, parts, counts = tiles
        at, own_at, still, value, mask, a, b, w, p, ring, prefix, now, own_f, own_m, own_w, area = registers
        if z >= end or z < int32(start - int32(radius)):
            return flags
        inside, done = int32(0) <= z < held, int32(z - int32(radius))
        lacking = cuda.syncthreads_or(stage_pair(raw, t, threads, size, masked, still, value, mask)) != int32(0)  # noqa: F821
        flags = uint32(uint32(uint32(flags << uint32(1)) & uint32(full)) | uint32(1 if lacking else 0))
        if lacking and not masked:
            stage_ones(raw, t, threads, size, bits if inside else uint32(0), value)
            cuda.syncthreads()  # noqa: F821
        # threads that have no windows to add up: the sums of the last plane, and of that before
        fold(terms, parts, done - int32(1), t, threads)
        if done > start + int32(1):
            finish(parts, totals, own, done - int32(2), t, threads)
        product_windows(raw, size, width, t, radius, lead, height, masked or lacking, masked, a, b, w, p, mid)
        back = offset(max(done, int32(0))) * floor
        from_f, from_m = spot(fixed, back), spot(moved, back)
        from_w = spot(weight, back) if masked else from_f
        for q in range(rows):
            own_f[q], own_m[q], own_w[q] = none, NIL, NIL
            if done >= start and x < nx and int32(y + int32(q)) < ny:
                own_f[q], own_m[q] = load(from_f, own_at[q]), get(from_m, own_at[q])
                own_w[q] = get(from_w, own_at[q]) if masked else ONE
        coming = int32(z + int32(1))
        there = bits if int32(0) <= coming < min(held, end) else uint32(0)
        fetch_pair(load, none, offset(max(coming, int32(0))) * floor, at, there, masked, fixed, weight, moved, still, value, mask)
        cuda.syncthreads()  # noqa: F821
        for field in range(5):
            sum_rows(mid, below, field, height, radius, rows, now)
        if masked or lacking:
            sum_rows(mid, below, 5, height, radius, rows, now)
        else:
            for q in range(rows):
                now[5 * rows + q] = area[q] if inside else NIL
        if shared_counts:
            for q in range(rows):
                counts[uint32(t + uint32(uint32(uint32(slot * uint32(rows)) + uint32(q)) * uint32(threads)))] = now[5 * rows + q]
        put_in(ring, prefix, now, slot, k)
        if done >= start:
            correlation, weights, deep = NIL, NIL, float32(within(done, radius, held))
            spots = spot(fields[0], back), spot(fields[1], back), spot(fields[2], back)
            for q in range(rows):
                n = deep * area[q]
                if masked or flags != uint32(0):
                    n = now[5 * rows + q]
                    if shared_counts:
                        n = counts[uint32(t + uint32(q * threads))]
                        for s in range(1, k):
                            n += counts[uint32(t + uint32((s * rows + q) * threads))]
                v = own_w[q] if own_m[q] == own_m[q] else NIL
                cc, d, g, c = factors(n, now[q], now[rows + q], now[2 * rows + q], now[3 * rows + q], now[4 * rows + q],
                                      epsilon, flat)  # fmt: skip
                if x < nx and int32(y + int32(q)) < ny:
                    store(spots, own_at[q], v, pixel(own_f[q]), own_m[q], d, g, c)
                correlation += v * cc
                weights += v
            terms[t], terms[uint32(t + uint32(threads))] = correlation, weights
        return flags

    @formula
    def steps(slot, z, flags, *block):
        """Four planes, as far as the ring has places for them."""
        flags = step(slot, int32(z + int32(slot)), flags, *block)
        if k > slot + 1:
            flags = step(slot + 1, int32(z + int32(slot + 1)), flags, *block)
        if k > slot + 2:
            flags = step(slot + 2, int32(z + int32(slot + 2)), flags, *block)
        if k > slot + 3:
            flags = step(slot + 3, int32(z + int32(slot + 3)), flags, *block)
        return flags

    def body(first, planes, ny, nx, held, origin, depth, own, epsilon, flat, fixed, weight, moved, out, totals):
        raw = cuda.shared.array(raws, float32, 16)  # noqa: F821
        mid = cuda.shared.array(mids, float32, 16)  # noqa: F821
        terms = cuda.shared.array(twice, float32)  # noqa: F821
        parts = cuda.shared.array(128, float32)  # noqa: F821
        counts = cuda.shared.array(spare, float32)  # noqa: F821
        at = cuda.local.array(slots, uint32)  # noqa: F821
        own_at = cuda.local.array(rows, uint32)  # noqa: F821
        still = cuda.local.array(slots, kind)  # noqa: F821
        value = cuda.local.array(slots, float32)  # noqa: F821
        mask = cuda.local.array(masks, float32)  # noqa: F821
        a = cuda.local.array(reach, float32)  # noqa: F821
        b = cuda.local.array(reach, float32)  # noqa: F821
        w = cuda.local.array(reach_w, float32)  # noqa: F821
        p = cuda.local.array(reach, float32)  # noqa: F821
        ring = cuda.local.array(places, float32)  # noqa: F821
        prefix = cuda.local.array(kept, float32)  # noqa: F821
        now = cuda.local.array(news, float32)  # noqa: F821
        own_f = cuda.local.array(rows, kind)  # noqa: F821
        own_m = cuda.local.array(rows, float32)  # noqa: F821
        own_w = cuda.local.array(rows, float32)  # noqa: F821
        area = cuda.local.array(rows, float32)  # noqa: F821
        t = uint32(cuda.threadIdx.x)  # noqa: F821
        left, top = int32(cuda.blockIdx.x * TILE_X), int32(cuda.blockIdx.y * tall)  # noqa: F821
        start = int32(first + int32(cuda.blockIdx.z) * depth)  # noqa: F821
        stop = int32(min(int32(start + depth), int32(first + planes)))
        lane, line = uint32(t & uint32(31)), uint32((t >> uint32(5)) * uint32(rows))
        x, y, below = int32(left + int32(lane)), int32(top + int32(line)), uint32(line * uint32(TILE_X) + lane)
        floor, end = offset(ny) * offset(nx), int32(stop + int32(radius))
        bits = place(at, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_at[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
            area[q] = float32(int32(within(int32(y + int32(q)), radius, ny) * within(x, radius, nx)))
        for q in range(places):
            ring[q] = NIL
        for q in range(kept):
            prefix[q] = NIL
        if shared_counts:
            for q in range(k * rows):
                counts[uint32(t + uint32(q * threads))] = NIL
        z, flags = int32(start - int32(radius)), uint32(0)  # the plane that comes in
        there = bits if int32(0) <= z < held else uint32(0)
        fetch_pair(load, none, offset(max(z, int32(0))) * floor, at, there, masked, fixed, weight, moved, still, value, mask)
        slot = uint32(int32(origin + z + int32(k)) % int32(k))
        grid = start, end, ny, nx, held, floor
        thread = t, x, y, below, bits
        arrays = fixed, weight, moved, split(out), totals, own
        tiles = raw, mid, terms, parts, counts
        registers = at, own_at, still, value, mask, a, b, w, p, ring, prefix, now, own_f, own_m, own_w, area
        if unrolled:
            z = int32(z - int32(slot))  # where this round of the ring began
            while z < end:
                flags = steps(0, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 4:
                    flags = steps(4, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 8:
                    flags = steps(8, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 12:
                    flags = steps(12, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                if k > 16:
                    flags = steps(16, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                z = int32(z + int32(k))
        else:
            while z < end:
                flags = step(slot, z, flags, grid, thread, arrays, tiles, registers, epsilon, flat)
                slot = uint32(slot + uint32(1)) if slot < uint32(k - 1) else uint32(0)
                z = int32(z + int32(1))
        last = int32(stop - int32(1))
        cuda.syncthreads()  # noqa: F821
        fold(terms, parts, last, t, threads)
        if last > start:
            finish(parts, totals, own, last - int32(1), t, threads)
        cuda.syncthreads()  # noqa: F821
        finish(parts, totals, own, last, t, threads)

    return body


@sweep(launch_bounds=window_bounds)
def lncc_center(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """The centre-window gradient times N, and sums: ``lncc_factors``, then ``lncc_slope`` with radius 0.

    Launch with blocks ``window_blocks`` and threads ``window_threads``; ``unrolled``: a copy of the code for each place of the
    ring, which spares a branch a plane, not another result. first, planes, ny, nx: int32, the box among the arrays'
    ``held`` planes, of which the first is plane ``origin`` of the grid;  depth: int32, planes a block marches through;  epsilon,
    flat: float32;  fixed, moved: (N,) float32, moved NaN out of domain;  weight: (N,) where ``masked``, else (0,);  slope: (N,),
    another array than moved;
    own: (2,) int32, first and last but one plane that count;  totals: (2,) int64, to which w cc and w are added in units of
    2^-28.
    """
    return march(radius, masked, unrolled, False, half)


@sweep(launch_bounds=window_bounds)
def lncc_factors_march(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_factors``: w D, w K and w (K mu_M - D mu_F) of each window, and sums.

    Launch with blocks ``window_blocks`` and threads ``window_threads``; ``unrolled``: a copy of the code for each place of the
    ring, which spares a branch a plane, not another result. first, planes, ny, nx: int32, the box among the arrays'
    ``held`` planes, of which the first is plane ``origin`` of the grid;  depth: int32, planes a block marches through;  epsilon,
    flat: float32;  fixed, moved: (N,) float32, moved NaN out of domain;  weight: (N,) where ``masked``, else (0,);  dkc: (3, N);
    own: (2,) int32, first and last but one plane that count;  totals: (2,) int64, to which w cc and w are added in units of
    2^-28.
    """
    return march(radius, masked, unrolled, True, half)


@formula
def fetch_three(base, at, bits, fields, values):
    """Load a plane of three fields into registers; zeros out of the grid."""
    a, b, c = spot(fields[0], base), spot(fields[1], base), spot(fields[2], base)
    k = len(at)
    for s in range(k):
        values[s], values[k + s], values[2 * k + s] = NIL, NIL, NIL
        if uint32(bits & uint32(1 << s)) != uint32(0):
            values[s], values[k + s], values[2 * k + s] = get(a, at[s]), get(b, at[s]), get(c, at[s])


@formula
def stage_three(raw, t, threads, size, values):
    """Put them into shared memory."""
    for q in range(3):
        for s in range(len(values) // 3):
            raw[uint32(t + uint32(q * size + s * threads))] = values[q * (len(values) // 3) + s]


@formula
def field_windows(raw, size, width, t, radius, lead, height, a, mid):
    """Windows along x of three fields: a thread four neighbours of a row."""
    row, group = uint32(t >> uint32(3)), uint32(t & uint32(7))
    if row < uint32(height):
        at = uint32(row * uint32(width) + group * uint32(GROUP))
        to = uint32(row * uint32(TILE_X) + group * uint32(GROUP))
        for q in range(3):
            read_row(raw, uint32(at + uint32(q * size)), a)
            sum_windows(a, lead, radius, mid, uint32(to + uint32(q * height * TILE_X)))


def slope_bounds(radius: int, masked: bool, unrolled: bool, half: bool = False) -> tuple[int, int]:
    """See ``window_bounds``."""
    return SLOPE_THREADS, 3 if radius <= 2 else 2 if radius <= 5 else 1


@sweep(launch_bounds=slope_bounds)
def lncc_slope_march(radius: int, masked: bool, unrolled: bool, half: bool = False) -> Callable[..., None]:
    """``lncc_slope``: the exact gradient times N in place of ``moved``.

    Launch with blocks ``slope_blocks`` and threads ``SLOPE_THREADS``. Arguments as in ``lncc_factors_march``, which wrote
    dkc: (3, N), without epsilon, flat and sums.
    """
    (kind, none), load = stored_as(half), get_half if half else get  # F as it is stored
    k, rows, threads, tall = 2 * radius + 1, 2, SLOPE_THREADS, tile_rows(1)
    pad = -(-radius // GROUP) * GROUP
    width, height, reach, lead = TILE_X + 2 * pad, tall + 2 * radius, GROUP + 2 * pad, pad - radius
    slots = -(-width * height // threads)
    size = slots * threads
    put_in = enter if unrolled else enter_any
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
            stage_three(raw, t, threads, size, values)
            cuda.syncthreads()  # noqa: F821
            field_windows(raw, size, width, t, radius, lead, height, a, mid)
            back = offset(max(done, int32(0))) * floor
            from_f, from_m = spot(fixed, back), spot(moved, back)
            from_w = spot(weight, back) if masked else from_f
            for q in range(rows):
                own_f[q], own_m[q], own_w[q] = none, NIL, ONE
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    own_f[q], own_m[q] = load(from_f, own_at[q]), get(from_m, own_at[q])
                    if masked:
                        own_w[q] = get(from_w, own_at[q])
            coming = int32(z + int32(1))
            there = bits if int32(0) <= coming < min(held, end) else uint32(0)
            fetch_three(offset(max(coming, int32(0))) * floor, at, there, fields, values)
            cuda.syncthreads()  # noqa: F821
            for field in range(3):
                sum_rows(mid, below, field, height, radius, rows, now)
            put_in(ring, prefix, now, slot, k)
            for q in range(rows):
                if done >= start and x < nx and int32(y + int32(q)) < ny:
                    slope = -(own_w[q] * (pixel(own_f[q]) * now[q] - own_m[q] * now[rows + q] + now[2 * rows + q]))
                    put(from_m, own_at[q], slope if own_m[q] == own_m[q] else NIL)

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
        floor, end = offset(ny) * offset(nx), int32(stop + int32(radius))
        bits = place(at, t, threads, height, width, int32(top - int32(radius)), int32(left - int32(pad)), ny, nx)
        for q in range(rows):
            own_at[q] = uint32(uint32(y + int32(q)) * uint32(nx) + uint32(x))
        for q in range(places):
            ring[q] = NIL
        for q in range(kept):
            prefix[q] = NIL
        z = int32(start - int32(radius))  # the plane that comes in
        there, fields = bits if int32(0) <= z < held else uint32(0), three_fields(dkc)
        fetch_three(offset(max(z, int32(0))) * floor, at, there, fields, values)
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


# ---------------------------------------------------------------- on arrays (Z, Y, X)

UNROLLED = False  # not a copy of the code for each place of the ring


def _sizes(box: tuple[int, int, int, int], held: int, origin: int, depth: int) -> tuple[Any, ...]:
    return tuple(np.int32(v) for v in (*box, held, origin, depth))


def windows(
    box: tuple[int, int, int, int], origin: int, own: tuple[int, int], radius: int, epsilon: Any, flat: Any, fixed: Any,
    weight: Any, moved: Any, out: Any, totals: Any
) -> None:  # fmt: skip
    """Window sums of a box: ``out`` (3, Z, Y, X) receives the factors, (Z, Y, X) the centre-window gradient.

    origin: plane of the grid that the arrays begin with;  own: the planes of the arrays that count for totals (2,) int64
    """
    _, planes, ny, nx = box
    if planes:
        march = lncc_factors_march if out.ndim == 4 else lncc_center
        flat_out = out.reshape(3, -1) if out.ndim == 4 else out.reshape(-1)
        fields = fixed.reshape(-1), weight.reshape(-1), moved.reshape(-1), flat_out, totals
        span = np.int32(own[0]), np.int32(own[1])
        across, down, _ = window_blocks(radius, planes, ny, nx, planes)
        depth = deep(planes, across * down, window_bounds(radius, False, UNROLLED)[1], radius)
        blocks, threads = window_blocks(radius, planes, ny, nx, depth), (window_threads(radius), 1, 1)
        march(
            (radius, weight.size > 0, UNROLLED, *halved(fixed)),
            blocks,
            threads,
            *_sizes(box, moved.shape[0], origin, depth),
            span,
            epsilon,
            flat,
            *fields,
        )


def slope(box: tuple[int, int, int, int], origin: int, radius: int, dkc: Any, fixed: Any, weight: Any, moved: Any) -> None:
    """The exact gradient from the factors, in place of ``moved``."""
    _, planes, ny, nx = box
    if planes:
        fields = dkc.reshape(3, -1), fixed.reshape(-1), weight.reshape(-1), moved.reshape(-1)
        across, down, _ = slope_blocks(planes, ny, nx, planes)
        depth = deep(planes, across * down, slope_bounds(radius, False, UNROLLED)[1], radius)
        blocks, sizes = slope_blocks(planes, ny, nx, depth), _sizes(box, moved.shape[0], origin, depth)
        lncc_slope_march((radius, weight.size > 0, UNROLLED, *halved(fixed)), blocks, (SLOPE_THREADS, 1, 1), *sizes, *fields)

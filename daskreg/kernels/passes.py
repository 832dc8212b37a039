# ruff: noqa: F821  (``cuda`` is given to a kernel when it is made, so that a CPU never imports it)
"""Filters in one pass over a GPU's memory with what comes after or before them: Adam's step, the composition.

A block of threads owns a tile of the (y, x) plane and marches along z. Each plane comes into shared memory once, with the rim
that a filter needs, while the next one is on its way into registers; sums along z live in a ring of registers. A voxel is
computed from its own neighbours in one order, whatever block it falls into, so that neither tiles nor ranks show.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32, float64, int32, int64, uint32, uint64

from daskreg.kernels.arithmetic import fused, lerp, quotient, root
from daskreg.kernels.half import die, first_moment, joined, same, second_moment, thrown, widened
from daskreg.kernels.launch import DISABLED, deep, formula, sweep
from daskreg.kernels.wide import fetch, store

ONE, NIL = float32(1), float32(0)
TILE = (4, 4) if DISABLED else (8, 64)  # threads along y and x of kernels with neighbours
LANES, WARPS, ROWS = (6, 3, 2) if DISABLED else (32, 4, 4)  # of a block that composes: columns, warps, rows a warp
FARTHEST = 9  # taps on one side of a filter that fit into shared memory
LONGEST = 64  # planes a block composes at most: neighbours that march together find each other's planes in the cache
PITCH = 8 if DISABLED else 64  # of rows in shared memory: lanes that look into different rows and planes meet in no bank


def warps(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes a block, blocks and threads of a composition, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = WARPS * ROWS - 2 * radius, LANES - 2 * radius
    across, down = -(-nx // tx), -(-ny // ty)
    length = min(LONGEST, deep(nz, across * down, 4, radius))
    return np.int32(length), (across, down, -(-nz // length)), (LANES, WARPS, 1)


def tiles(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes a block, blocks and threads of a filter, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = TILE
    across, down = -(-nx // tx), -(-ny // ty)
    length = deep(nz, across * down, 2, radius)
    return np.int32(length), (across, down, -(-nz // length)), (tx, ty, 1)


@formula
def axis_sum(line, at, stride, weights, taps):
    """Left to right. Offsets have 64 bits, so that those known to the compiler go into the instruction."""
    total = weights[0] * line[at]
    for t in range(1, taps):
        total = fused(weights[t], line[at + uint64(t) * uint64(stride)], total)
    return total


@formula
def store_vector(field, base, size, byte, a, b, c):
    """Three components, ``size`` voxels apart."""
    store(field, base, byte, a)
    store(field, base + size, byte, b)
    store(field, base + uint64(2) * size, byte, c)


@formula
def enter(sums, start, value, weights, taps):
    """A plane's value comes in: the sum over the last ``taps`` planes; ``sums`` keeps what later ones have so far."""
    total = fused(weights[taps - 1], value, sums[start + taps - 2]) if taps > 1 else weights[0] * value
    for q in range(taps - 2):
        at = taps - 2 - q
        sums[start + at] = fused(weights[at], value, sums[start + at - 1])
    if taps > 1:
        sums[start] = weights[0] * value
    return total


@formula
def direction(m, v, c1, c2, eps):
    """A component of Adam's direction."""
    return -quotient(m * c1, root(v * c2) + eps)


@formula
def direction_of(word, pace):
    """The same from what the moments are stored as; pace: both bias corrections and epsilon."""
    return direction(first_moment(word), second_moment(word), pace[0], pace[1], pace[2])


@formula
def read_nothing(array, base, byte):
    """In mixed storage v comes with m."""
    return uint32(0)


@formula
def step_moments(m, v, d, at, size, byte, voxel, t, kept, s0, s1, s2, pace):
    """Moments and direction from what was stored and the smoothed gradient; |d|^2."""
    m0, m1, m2, v0, v1, v2 = kept
    b1, b2, c1, c2, eps = pace
    m0, m1, m2 = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1)
    v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
    d0, d1, d2 = direction(m0, v0, c1, c2, eps), direction(m1, v1, c1, c2, eps), direction(m2, v2, c1, c2, eps)
    store_vector(m, at, size, byte, m0, m1, m2)
    store_vector(v, at, size, byte, v0, v1, v2)
    store_vector(d, at, size, byte, d0, d1, d2)
    return fused(d2, d2, fused(d1, d1, d0 * d0))


@formula
def step_words(words, nothing, first, at, size, byte, voxel, t, kept, s0, s1, s2, pace):
    """``step_moments`` in mixed storage: the direction is that of the moments as they are stored."""
    b1, b2, c1, c2, eps = pace
    later, dice = (c1, c2, eps), thrown(voxel, t)
    m, v = lerp(s0, first_moment(kept[0]), b1), lerp(s0 * s0, second_moment(kept[0]), b2)
    w0 = joined(m, v, die(dice, 0))
    m, v = lerp(s1, first_moment(kept[1]), b1), lerp(s1 * s1, second_moment(kept[1]), b2)
    w1 = joined(m, v, die(dice, 1))
    m, v = lerp(s2, first_moment(kept[2]), b1), lerp(s2 * s2, second_moment(kept[2]), b2)
    w2 = joined(m, v, die(dice, 2))
    store_vector(words, at, size, byte, w0, w1, w2)
    d0, d1, d2 = direction_of(w0, later), direction_of(w1, later), direction_of(w2, later)
    return fused(d2, d2, fused(d1, d1, d0 * d0))


@formula
def numbered(first, z, plane, byte):
    """A voxel's number in the grid, 32 bits of it; z: plane of the arrays, of which the first is ``first``."""
    return uint32(uint32(uint32(int32(z) + first) * uint32(plane)) + uint32(byte >> uint32(2)))


@formula
def unnumbered(first, z, plane, byte):
    """Where nobody asks."""
    return uint32(0)


@sweep(launch_bounds=lambda radius, mixed=False: (512, 2))
def smooth_adam(radius, mixed=False):
    """Gaussian of g, Adam's moments in place, direction d, the longest |d|^2: 72 bytes a voxel, 30 in mixed storage.

    Arguments: length (planes a block; int32), n (first plane within the arrays, planes, rows, columns; uint32), edge (planes
    of the arrays), weights (taps), norms along z (planes of the arrays), y, x: 1 / the weights' sum within the global grid;
    rates (T, 5), clock (1,) int32: which row counts; g, m, v, d (3 N,); longest (1,) float32, raised to the largest |d|^2.
    ``mixed``: g is uint16, bfloat16's bits; m: both moments, uint32 as ``half.joined`` makes them; v: not looked at;  d: none,
    but the global plane of the arrays' plane 0 (int32), on which rounding depends.
    """
    (ty, tx), r, taps = TILE, radius, 2 * radius + 1
    threads, wide, high = ty * tx, tx + 2 * r, ty + 2 * r
    loads, rows = -(-(wide * high) // threads), -(-(3 * high) // ty)
    full = wide * high // threads  # loads that every thread has
    tile, middle, rings, fetched = 3 * high * wide, 3 * high * tx, max(1, 3 * (taps - 1)), 3 * loads
    kind, none, width = (uint32, uint32(0), 2) if mixed else (float32, NIL, 4)  # of g as it is stored
    opened, beside_m, step = (widened, read_nothing, step_words) if mixed else (same, fetch, step_moments)
    number = numbered if mixed else unnumbered

    def body(length, n, edge, weights, norm_z, norm_y, norm_x, rates, clock, g, m, v, d, longest):
        raw = cuda.shared.array(tile, float32)
        mid = cuda.shared.array(middle, float32)
        sums, ahead = cuda.local.array(rings, float32), cuda.local.array(fetched, kind)
        place, inside = cuda.local.array(loads, uint32), cuda.local.array(loads, int32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(tx) + i)
        left, top = int32(cuda.blockIdx.x) * int32(tx), int32(cuda.blockIdx.y) * int32(ty)
        x, y = uint32(left + int32(i)), uint32(top + int32(j))
        here = y < n[2] and x < n[3]
        for e in range(loads):
            spot = uint32(thread + uint32(e * threads))
            row, col = top + int32(spot // uint32(wide)) - int32(r), left + int32(spot % uint32(wide)) - int32(r)
            real = spot < uint32(wide * high) and uint32(row) < n[2] and uint32(col) < n[3]
            inside[e] = int32(real)
            place[e] = uint32(uint32(width) * (uint32(row) * n[3] + uint32(col))) if real else uint32(0)
        plane = uint64(n[2]) * uint64(n[3])
        size = plane * uint64(edge)
        mine = uint32(uint32(4) * (min(y, n[2] - uint32(1)) * n[3] + min(x, n[3] - uint32(1))))
        norm = norm_y[min(y, n[2] - uint32(1))] * norm_x[min(x, n[3] - uint32(1))]
        t = clock[0]
        pace = rates[t, 0], rates[t, 1], rates[t, 2], rates[t, 3], rates[t, 4]
        low = int32(n[0]) + int32(cuda.blockIdx.z) * length
        stop = min(low + length, int32(n[0] + n[1]))
        most = NIL
        for q in range(rings):
            sums[q] = NIL
        k = low - int32(r)
        base = plane * uint64(uint32(max(k, int32(0))))
        for e in range(loads):
            for c in range(3):
                ahead[3 * e + c] = none
                if inside[e] and uint32(k) < edge:
                    ahead[3 * e + c] = fetch(g, base + uint64(c) * size, place[e])
        while k < stop + int32(r):
            for e in range(loads):
                spot = uint32(thread + uint32(e * threads))
                if e < full or spot < uint32(wide * high):
                    for c in range(3):
                        raw[uint64(spot) + uint64(c * wide * high)] = opened(ahead[3 * e + c])
            cuda.syncthreads()
            z = k - int32(r)
            done = z >= low and here
            at = plane * uint64(uint32(max(z, int32(0))))
            m0, m1, m2, v0, v1, v2 = none, none, none, none, none, none
            if done:
                m0, m1, m2 = fetch(m, at, mine), fetch(m, at + size, mine), fetch(m, at + uint64(2) * size, mine)
                v0, v1, v2 = beside_m(v, at, mine), beside_m(v, at + size, mine), beside_m(v, at + uint64(2) * size, mine)
            k += int32(1)
            more = k < stop + int32(r) and uint32(k) < edge
            base = plane * uint64(uint32(max(k, int32(0))))
            for e in range(loads):
                for c in range(3):
                    ahead[3 * e + c] = none
                    if more and inside[e]:
                        ahead[3 * e + c] = fetch(g, base + uint64(c) * size, place[e])
            for s in range(rows):
                line = uint32(j + uint32(s * ty))
                if (s + 1) * ty <= 3 * high or line < uint32(3 * high):
                    total = axis_sum(raw, uint64(uint32(j * uint32(wide) + i)) + uint64(s * ty * wide), 1, weights, taps)
                    mid[uint64(thread) + uint64(s * ty * tx)] = total
            cuda.syncthreads()
            s0 = enter(sums, 0, axis_sum(mid, uint64(thread), tx, weights, taps), weights, taps)
            s1 = enter(sums, taps - 1, axis_sum(mid, uint64(thread) + uint64(high * tx), tx, weights, taps), weights, taps)
            s2 = enter(
                sums, 2 * taps - 2, axis_sum(mid, uint64(thread) + uint64(2 * high * tx), tx, weights, taps), weights, taps
            )
            if done:
                scale = norm * norm_z[z]
                s0, s1, s2 = s0 * scale, s1 * scale, s2 * scale
                voxel = number(d, z, n[2] * n[3], mine)
                most = max(most, step(m, v, d, at, size, mine, voxel, t, (m0, m1, m2, v0, v1, v2), s0, s1, s2, pace))
        cuda.syncthreads()
        raw[thread] = most
        cuda.syncthreads()
        half = uint32(threads // 2)
        while half > uint32(0):
            if thread < half:
                raw[thread] = max(raw[thread], raw[thread + half])
            cuda.syncthreads()
            half = uint32(half >> uint32(1))
        if thread == uint32(0):
            cuda.atomic.max(longest, 0, raw[0])

    return body


@formula
def beside(d):
    """Whether a point d away, |d| < 1, lies before its voxel, and the weight of the second of the two voxels around it."""
    back = d < NIL
    return uint32(back), d + ONE if back else d


@formula
def looked_up(near, a, b, wide, wz, wy, wx):
    """Trilinear value in shared memory between the voxels from a on in one plane and from b on in the next."""
    one, row = uint64(1), uint64(wide)
    plane0 = lerp(lerp(near[a], near[a + one], wx), lerp(near[a + row], near[a + row + one], wx), wy)
    plane1 = lerp(lerp(near[b], near[b + one], wx), lerp(near[b + row], near[b + row + one], wx), wy)
    return lerp(plane0, plane1, wz)


@formula
def held(k, first, whole, edge):
    """The plane of the arrays that is k, clamped to the global grid (and to what is there, where nobody looks)."""
    return uint64(uint32(min(max(min(max(k + first, int32(0)), whole - int32(1)) - first, int32(0)), int32(edge) - int32(1))))


@formula
def across(value, weights, r):
    """The filter along x among the lanes of a warp."""
    total = weights[r] * value
    for q in range(1, r + 1):
        total = fused(weights[r - q], cuda.shfl_up_sync(0xFFFFFFFF, value, q), total)
        total = fused(weights[r + q], cuda.shfl_down_sync(0xFFFFFFFF, value, q), total)
    return total


@formula
def no_pace(d):
    """Where a direction is stored as it is."""
    return NIL


@formula
def pace_of(d):
    """What a direction follows from, beside the moments."""
    t = d[2][0]
    return d[1][t, 2], d[1][t, 3], d[1][t, 4]


@formula
def as_stored(value, pace):
    """A direction that is stored as it is."""
    return value


@formula
def fetch_words(d, base, byte):
    """What a direction follows from."""
    return fetch(d[0], base, byte)


@sweep(launch_bounds=lambda radius, mixed=False: (WARPS * 32, 4))
def compose_smooth(radius, mixed=False):
    """``u <- G (s d + u o (Id + s d))``, s d at most half a voxel: 36 bytes a voxel.

    A warp owns ``ROWS`` rows of 32 columns, of which all are composed and those within ``radius`` of the end serve their
    neighbours only. Three planes of u are in shared memory, clamped to the global grid: a step is less than a voxel. Along x
    the filter asks the neighbouring lanes, along y shared memory, along z a ring of registers.
    Arguments: length, n, edge, weights, norm_z, norm_y, norm_x as in ``smooth_adam``; first (global plane of the arrays' plane
    0), whole (planes of the global grid; int32), half_step (float32), longest (1,) float32, d, u, composed (3 N,). ``mixed``: in
    place of d the moments as ``smooth_adam`` left them, rates and clock, from which it follows once more.
    """
    r, taps, per = radius, 2 * radius + 1, ROWS
    threads, high, lanes = WARPS * LANES, WARPS * ROWS, LANES
    middle, rings, fetched = 3 * high * lanes, max(1, 3 * ROWS * (taps - 1)), 3 * ROWS
    wider, pitch = lanes + 2, PITCH
    near_by, area = wider * (high + 2), pitch * (high + 2)
    parts, full = -(-near_by // threads), near_by // threads
    stored, brought = 9 * area, 3 * parts
    shuffled = not DISABLED
    kind, none = (uint32, uint32(0)) if mixed else (float32, NIL)
    take, begin, opened = (fetch_words, pace_of, direction_of) if mixed else (fetch, no_pace, as_stored)

    @formula
    def along(mid, thread, weights):
        """The filter along x in shared memory, where lanes cannot be asked: the simulator."""
        cuda.syncthreads()
        row, i = int(thread) // lanes * per, int(thread) % lanes
        sums = []
        for e in range(per):
            for c in range(3):
                start = c * high * lanes + (row + e) * lanes
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
        near = cuda.shared.array(stored, float32)
        sums, ahead = cuda.local.array(rings, float32), cuda.local.array(fetched, kind)
        coming, source = cuda.local.array(brought, float32), cuda.local.array(parts, uint32)
        seat = cuda.local.array(parts, uint32)
        real = cuda.local.array(per, int32)
        i, j = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        thread = uint32(j * uint32(lanes) + i)
        left, top = (
            int32(cuda.blockIdx.x) * int32(lanes - 2 * r) - int32(r),
            int32(cuda.blockIdx.y) * int32(high - 2 * r) - int32(r),
        )
        col, row = left + int32(i), top + int32(j) * int32(per)
        ny, nx = int32(n[2]), int32(n[3])
        plane = uint64(n[2]) * uint64(n[3])
        size, stride = plane * uint64(edge), uint32(uint32(4) * n[3])
        place = uint32(uint32(4) * uint32(row * nx + col))
        within = uint32(i - uint32(r)) < uint32(lanes - 2 * r)
        norm = norm_x[min(max(col, int32(0)), nx - int32(1))]
        scale, pace = half_step / max(ONE, root(longest[0])), begin(d)
        low = int32(n[0]) + int32(cuda.blockIdx.z) * length
        stop = min(low + length, int32(n[0] + n[1]))
        k = low - int32(r)
        for q in range(rings):
            sums[q] = NIL
        base = plane * uint64(uint32(max(k, int32(0))))
        for e in range(per):
            real[e] = int32(uint32(row + int32(e)) < n[2] and uint32(col) < n[3])
            for c in range(3):
                ahead[3 * e + c] = none
                if real[e] and uint32(k) < edge:
                    ahead[3 * e + c] = take(d, base + uint64(c) * size, uint32(place + uint32(e) * stride))
        before, now = plane * held(k - int32(1), first, whole, edge), plane * held(k, first, whole, edge)
        after = plane * held(k + int32(1), first, whole, edge)
        for e in range(parts):
            spot = uint32(thread + uint32(e * threads))
            line, at_x = top + int32(spot // uint32(wider)) - int32(1), left + int32(spot % uint32(wider)) - int32(1)
            line, at_x = min(max(line, int32(0)), ny - int32(1)), min(max(at_x, int32(0)), nx - int32(1))
            source[e] = uint32(uint32(4) * uint32(line * nx + at_x))
            seat[e] = uint32(spot // uint32(wider) * uint32(pitch) + spot % uint32(wider))
            for c in range(3):
                if e < full or spot < uint32(near_by):
                    near[uint64(seat[e]) + uint64(c * area)] = fetch(u, before + uint64(c) * size, source[e])
                    near[uint64(seat[e]) + uint64((3 + c) * area)] = fetch(u, now + uint64(c) * size, source[e])
                    coming[3 * e + c] = fetch(u, after + uint64(c) * size, source[e])
        below, level, above = uint32(0), uint32(3 * area), uint32(6 * area)
        corner = uint32((j * uint32(per) + uint32(1)) * uint32(pitch) + i + uint32(1))
        to = uint64(uint32(j * uint32(per * lanes) + i))
        while k < stop + int32(r):
            z = k - int32(r)
            for e in range(parts):
                if e < full or uint32(thread + uint32(e * threads)) < uint32(near_by):
                    for c in range(3):
                        near[uint64(uint32(above + seat[e])) + uint64(c * area)] = coming[3 * e + c]
            cuda.syncthreads()
            after = plane * held(k + int32(2), first, whole, edge)
            for e in range(parts):
                if e < full or uint32(thread + uint32(e * threads)) < uint32(near_by):
                    for c in range(3):
                        coming[3 * e + c] = fetch(u, after + uint64(c) * size, source[e])
            there = uint32(k) < edge
            for e in range(per):
                dz, dy = scale * opened(ahead[3 * e], pace), scale * opened(ahead[3 * e + 1], pace)
                dx = scale * opened(ahead[3 * e + 2], pace)
                bz, wz = beside(dz)
                by, wy = beside(dy)
                bx, wx = beside(dx)
                at = uint32(corner - by * uint32(pitch) - bx)
                p0 = uint64(uint32(at + (below if bz else level))) + uint64(e * pitch)
                p1 = uint64(uint32(at + (level if bz else above))) + uint64(e * pitch)
                c0 = dz + looked_up(near, p0, p1, pitch, wz, wy, wx)
                c1 = dy + looked_up(near, p0 + uint64(area), p1 + uint64(area), pitch, wz, wy, wx)
                c2 = dx + looked_up(near, p0 + uint64(2 * area), p1 + uint64(2 * area), pitch, wz, wy, wx)
                if not (there and real[e]):
                    c0, c1, c2 = NIL, NIL, NIL
                if shuffled:
                    c0, c1, c2 = across(c0, weights, r), across(c1, weights, r), across(c2, weights, r)
                line = to + uint64(e * lanes)
                mid[line], mid[line + uint64(high * lanes)], mid[line + uint64(2 * high * lanes)] = c0, c1, c2
            k += int32(1)
            more = k < stop + int32(r) and uint32(k) < edge
            base = plane * uint64(uint32(max(k, int32(0))))
            for e in range(per):
                for c in range(3):
                    ahead[3 * e + c] = none
                    if more and real[e]:
                        ahead[3 * e + c] = take(d, base + uint64(c) * size, uint32(place + uint32(e) * stride))
            cuda.syncthreads()
            if not shuffled:
                along(mid, thread, weights)
            below, level, above = level, above, below
            at_z = plane * uint64(uint32(max(z, int32(0))))
            for e in range(per):
                line = uint32(j * uint32(per) + uint32(e))
                inner = uint32(line - uint32(r)) < uint32(high - 2 * r)
                if inner:
                    start = to + uint64(e * lanes) - uint64(r * lanes)
                    a = enter(sums, 3 * e * (taps - 1), axis_sum(mid, start, lanes, weights, taps), weights, taps)
                    start += uint64(high * lanes)
                    b = enter(sums, (3 * e + 1) * (taps - 1), axis_sum(mid, start, lanes, weights, taps), weights, taps)
                    start += uint64(high * lanes)
                    c = enter(sums, (3 * e + 2) * (taps - 1), axis_sum(mid, start, lanes, weights, taps), weights, taps)
                    if z >= low and within and real[e]:
                        total = norm * norm_y[row + int32(e)] * norm_z[z]
                        store_vector(composed, at_z, size, uint32(place + uint32(e) * stride), a * total, b * total, c * total)

    return body


@sweep()
def settle(sign):
    """End an iteration: the loss is noted, sums and clock are made ready for the next. One thread.

    sign: of what is summed within the loss, 0 where the loss is known already.  Arguments: clock (1,) int32, totals (2,) int64,
    longest (1,) float32, loss (1,) float64, losses (T,) float64.
    """

    def body(clock, totals, longest, loss, losses):
        t = clock[0]
        losses[t] = loss[0] if sign == 0 else float64(sign) * float64(totals[0]) / max(float64(totals[1]), float64(1))
        totals[0], totals[1], longest[0], clock[0] = int64(0), int64(0), NIL, t + int32(1)

    return body

# ruff: noqa: F821  (``cuda`` is given to a kernel when it is made, so that a CPU never imports it)
"""Adam's step on a GPU, in one pass over memory with the Gaussian of the gradient.

A block of threads owns a tile of the (y, x) plane and marches along z. Each plane comes into shared memory once, with the rim
that a filter needs, while the next one is on its way into registers; sums along z live in a ring of registers. A voxel is
computed from its own neighbours in one order, whatever block it falls into, so that neither tiles nor ranks show.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import float32, float64, int32, int64, uint32, uint64

from daskreg.kernels.adam.moments import first_moment, pack_word, second_moment
from daskreg.kernels.compiler.configuration import block_size, planes_per_block
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import divide_fast, fma, lerp, sqrt_fast
from daskreg.kernels.intrinsics.half import from_bfloat16, identity
from daskreg.kernels.intrinsics.memory import load_bytes, store_components
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from daskreg.kernels.smoothing.cuda import filter_sum, push_plane

ZERO = float32(0)
TILE = block_size(8), block_size(64)  # threads along y and x of kernels with neighbours


def tiles(n: Sequence[Any], radius: int) -> tuple[np.int32, tuple[int, int, int], tuple[int, int, int]]:
    """Planes a block, blocks and threads of a filter, x first."""
    _, nz, ny, nx = (int(v) for v in n)
    ty, tx = TILE
    across, down = -(-nx // tx), -(-ny // ty)
    length = planes_per_block(nz, across * down, 2, radius)
    return np.int32(length), (across, down, -(-nz // length)), (tx, ty, 1)


@formula
def direction(m, v, c1, c2, eps):
    """A component of Adam's direction."""
    return -divide_fast(m * c1, sqrt_fast(v * c2) + eps)


@formula
def packed_direction(word, pace):
    """The same from what the moments are stored as; pace: both bias corrections and epsilon."""
    return direction(first_moment(word), second_moment(word), pace[0], pace[1], pace[2])


@formula
def no_second_moment(array, base, byte):
    """In mixed storage v comes with m."""
    return uint32(0)


@formula
def update_moments(m, v, d, at, size, byte, voxel, t, kept, s0, s1, s2, pace):
    """Moments and direction from what was stored and the smoothed gradient; |d|^2."""
    m0, m1, m2, v0, v1, v2 = kept
    b1, b2, c1, c2, eps = pace
    m0, m1, m2 = lerp(s0, m0, b1), lerp(s1, m1, b1), lerp(s2, m2, b1)
    v0, v1, v2 = lerp(s0 * s0, v0, b2), lerp(s1 * s1, v1, b2), lerp(s2 * s2, v2, b2)
    d0, d1, d2 = direction(m0, v0, c1, c2, eps), direction(m1, v1, c1, c2, eps), direction(m2, v2, c1, c2, eps)
    store_components(m, at, size, byte, m0, m1, m2)
    store_components(v, at, size, byte, v0, v1, v2)
    store_components(d, at, size, byte, d0, d1, d2)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


@formula
def update_packed_moments(words, nothing, first, at, size, byte, voxel, t, kept, s0, s1, s2, pace):
    """``step_moments`` in mixed storage: the direction is that of the moments as they are stored."""
    b1, b2, c1, c2, eps = pace
    later, dice = (c1, c2, eps), random_bits(voxel, t)
    m, v = lerp(s0, first_moment(kept[0]), b1), lerp(s0 * s0, second_moment(kept[0]), b2)
    w0 = pack_word(m, v, component_bits(dice, 0))
    m, v = lerp(s1, first_moment(kept[1]), b1), lerp(s1 * s1, second_moment(kept[1]), b2)
    w1 = pack_word(m, v, component_bits(dice, 1))
    m, v = lerp(s2, first_moment(kept[2]), b1), lerp(s2 * s2, second_moment(kept[2]), b2)
    w2 = pack_word(m, v, component_bits(dice, 2))
    store_components(words, at, size, byte, w0, w1, w2)
    d0, d1, d2 = packed_direction(w0, later), packed_direction(w1, later), packed_direction(w2, later)
    return fma(d2, d2, fma(d1, d1, d0 * d0))


@formula
def voxel_number(first, z, plane, byte):
    """A voxel's number in the grid, 32 bits of it; z: plane of the arrays, of which the first is ``first``."""
    return uint32(uint32(uint32(int32(z) + first) * uint32(plane)) + uint32(byte >> uint32(2)))


@formula
def no_voxel_number(first, z, plane, byte):
    """Where nobody asks."""
    return uint32(0)


@cooperative_kernel(launch_bounds=lambda radius, mixed=False: (512, 2))
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
    kind, none, width = (uint32, uint32(0), 2) if mixed else (float32, ZERO, 4)  # of g as it is stored
    opened, beside_m, step = (
        (from_bfloat16, no_second_moment, update_packed_moments) if mixed else (identity, load_bytes, update_moments)
    )
    number = voxel_number if mixed else no_voxel_number

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
        most = ZERO
        for q in range(rings):
            sums[q] = ZERO
        k = low - int32(r)
        base = plane * uint64(uint32(max(k, int32(0))))
        for e in range(loads):
            for c in range(3):
                ahead[3 * e + c] = none
                if inside[e] and uint32(k) < edge:
                    ahead[3 * e + c] = load_bytes(g, base + uint64(c) * size, place[e])
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
                m0, m1, m2 = load_bytes(m, at, mine), load_bytes(m, at + size, mine), load_bytes(m, at + uint64(2) * size, mine)
                v0, v1, v2 = beside_m(v, at, mine), beside_m(v, at + size, mine), beside_m(v, at + uint64(2) * size, mine)
            k += int32(1)
            more = k < stop + int32(r) and uint32(k) < edge
            base = plane * uint64(uint32(max(k, int32(0))))
            for e in range(loads):
                for c in range(3):
                    ahead[3 * e + c] = none
                    if more and inside[e]:
                        ahead[3 * e + c] = load_bytes(g, base + uint64(c) * size, place[e])
            for s in range(rows):
                line = uint32(j + uint32(s * ty))
                if (s + 1) * ty <= 3 * high or line < uint32(3 * high):
                    total = filter_sum(raw, uint64(uint32(j * uint32(wide) + i)) + uint64(s * ty * wide), 1, weights, taps)
                    mid[uint64(thread) + uint64(s * ty * tx)] = total
            cuda.syncthreads()
            s0 = push_plane(sums, 0, filter_sum(mid, uint64(thread), tx, weights, taps), weights, taps)
            s1 = push_plane(sums, taps - 1, filter_sum(mid, uint64(thread) + uint64(high * tx), tx, weights, taps), weights, taps)
            s2 = push_plane(
                sums, 2 * taps - 2, filter_sum(mid, uint64(thread) + uint64(2 * high * tx), tx, weights, taps), weights, taps
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


@cooperative_kernel()
def settle(sign):
    """End an iteration: the loss is noted, sums and clock are made ready for the next. One thread.

    sign: of what is summed within the loss, 0 where the loss is known already.  Arguments: clock (1,) int32, totals (2,) int64,
    longest (1,) float32, loss (1,) float64, losses (T,) float64.
    """

    def body(clock, totals, longest, loss, losses):
        t = clock[0]
        losses[t] = loss[0] if sign == 0 else float64(sign) * float64(totals[0]) / max(float64(totals[1]), float64(1))
        totals[0], totals[1], longest[0], clock[0] = int64(0), int64(0), ZERO, t + int32(1)

    return body

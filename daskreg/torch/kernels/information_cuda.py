"""Mutual information on a GPU: joint histograms of a batch in shared memory, and gradients.

As in ``similarity.mutual_information.cuda.histogram``: a block counts in 32-bit fixed point in several copies of the histogram,
which it adds to 64-bit totals before a word can overflow, so results do not depend on the order of additions. Both kernels that
visit voxels are as fast as their instructions are issued, so these are few: exponentials, reciprocals and roundings are one or
two each, and a count is the bits of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import COUNTER, OFFSET, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import ROUNDING, exp2_fast, reciprocal_fast
from daskreg.kernels.intrinsics.half import float_to_bits
from daskreg.kernels.intrinsics.memory import address, beyond, load, store
from daskreg.similarity.mutual_information.cpu import spline, spline_derivative
from daskreg.torch.kernels.information import GAUSSIAN

ONE, TWO, ZERO, HALF = float32(1), float32(2), float32(0), float32(0.5)
LOG2_E = float32(math.log2(math.e))
FIXED_POINT = 2**20  # counts per voxel
# bits of a float32 below 2^-126 are its multiple of 2^-149, so a product with this factor is rounded to a count
UNIT = float32(FIXED_POINT * 2.0**-149)
DROP = 24  # weights of fixed are smaller by 2^DROP, so that those of moved times UNIT and their factor are above 2^-126
ROUNDING_BITS = 0x4B400000  # of ROUNDING
THREADS = block_size(1024, least=32)  # of a block that counts or looks up: as many as a multiprocessor can have
VOXELS = 2  # of a thread at a time: loads in flight
MAX_COPIES = 32  # banks of shared memory
NO_NUMBER = 2**62  # a count that tells that an intensity was not a number; others are below 2^61


def _bounds(*constants: Any) -> tuple[int, int]:
    return THREADS, 1


def copies_within(edge: int, memory: int) -> int:
    """Copies of a table that fit into some bytes of shared memory: a power of two; more have fewer bank conflicts."""
    fit = max(1, memory // (4 * edge * edge))
    return min(MAX_COPIES, 1 << (fit.bit_length() - 1))


def shared_bytes(edge: int, copies: int) -> int:
    """Dynamic shared memory of ``joint_histograms`` and ``information_gradients`` in bytes."""
    return 4 * edge * edge * copies


@formula
def place_of(value, kind, middle, window):
    """The clamped intensity;  the whole bins after the bin ``middle``, also with ``ROUNDING``;  and the rest.

    To the nearest bin, the even one of two; of a spline, to the bin before: a fraction of 1 is 0 of the next.
    """
    low, high, origin, per, _, _, _ = window
    clamped = min(max(low, value), high)  # low for what is no number
    t = (clamped - origin) * per - float32(middle)
    shifted = (t if kind == GAUSSIAN else t - HALF) + ROUNDING
    whole = shifted - ROUNDING
    return clamped, whole, shifted, t - whole


@formula
def fill(f, kind, taps, drop, window, weights):
    """The weights of the bins around an intensity, up to a factor; f: the rest of ``place_of``.

    exp(-h (f - k)^2) is in proportion to A^k C_k, A = exp(h (2 f - 1)), C_k = exp(-h k (k - 1)), for k > 0, and likewise below:
    two exponentials for all bins, and no term exceeds 1. All are smaller by 2^drop.
    """
    _, _, _, _, twice, once, share = window
    if kind == GAUSSIAN:
        radius, larger = taps // 2, float32(2.0**drop)
        up, down = exp2_fast(twice * f - (once + float32(drop))), exp2_fast(-twice * f - (once + float32(drop)))
        weights[radius], above, below, factor = float32(2.0**-drop), up, down, share * larger
        for k in range(1, radius + 1):
            weights[radius + k], weights[radius - k] = above, below
            above, below, factor = above * (up * factor), below * (down * factor), factor * share
    else:
        a, b, c, d = spline(f)
        smaller = float32(2.0**-drop)
        weights[0], weights[1], weights[2], weights[3] = a * smaller, b * smaller, c * smaller, d * smaller


@formula
def mask(whole, taps, bins, middle, weights):
    """No weight for bins that do not exist."""
    radius = taps // 2
    for k in range(1, radius + 1):
        weights[radius - k] = weights[radius - k] if whole >= float32(k - middle) else ZERO
        weights[radius + k] = weights[radius + k] if whole <= float32(bins - 1 - k - middle) else ZERO


@formula
def mask_both(i, j, kind, taps, bins, middle, of_moved, of_fixed):
    """``mask`` where a window of a Gaussian reaches beyond the bins."""
    if kind == GAUSSIAN:
        inner = float32(min(middle, bins - 1 - middle) - taps // 2)
        if max(abs(i), abs(j)) > inner:
            mask(i, taps, bins, middle, of_moved)
            mask(j, taps, bins, middle, of_fixed)


@formula
def total_of(weights, taps):
    """The sum of the weights."""
    total = weights[taps // 2]
    for k in range(taps):
        if k != taps // 2:
            total += weights[k]
    return total


@formula
def first_word(i, shifted, kind, taps, edge, pad, middle):
    """The entry of a table of the first bins of both windows."""
    before = taps // 2 if kind == GAUSSIAN else 1
    start = (middle + pad - before) * (edge + 1) - ROUNDING_BITS
    return uint32(int32(float_to_bits(i * float32(edge) + shifted)) + int32(start))


@formula
def window_of(kind, low, high, origin, per, steepness):
    """What ``place_of`` and ``fill`` take, computed once."""
    once = steepness * LOG2_E
    return low, high, origin, per, TWO * once, once, exp2_fast(-TWO * once)


@formula
def next_voxels(fixed, moved, at, count, f_values, m_values):
    """Load voxels of a thread that exist."""
    here, there = beyond(fixed, at), beyond(moved, at)
    for s in range(VOXELS):
        if uint32(at + uint32(s * THREADS)) < count:
            f_values[s], m_values[s] = load(here, uint32(s * THREADS)), load(there, uint32(s * THREADS))


@formula
def part_of(n, blocks, block):
    """The first voxel of a block's part of a volume, and the number of its voxels."""
    part = OFFSET(OFFSET(n + blocks - OFFSET(1)) // blocks)
    begin = min(OFFSET(n), OFFSET(part * block))
    return begin, uint32(min(part, OFFSET(n - begin)))


@cooperative_kernel(launch_bounds=_bounds)
def joint_histograms(kind: int, bins: int, taps: int, pad: int, copies: int) -> Callable[..., None]:
    """``joint_rows``: block row y of the grid counts volume y.  n: uint64, voxels of a volume;  low ... steepness: float32;
    fixed, moved: (N n,);  totals: (N edge edge,) int64, in units of 1 / FIXED_POINT, the first at least ``NO_NUMBER`` where an
    intensity is not a number. Launch with ``THREADS`` threads and ``shared=shared_bytes(edge, copies)``.
    """
    edge, middle = bins + 2 * pad, bins // 2
    size = edge * edge
    words = size * copies
    max_rounds = max(1, (2**32 // FIXED_POINT - 1) * copies // (THREADS * VOXELS))

    @formula
    def flush(counts, totals, first, t):
        """Add up and clear the copies; each thread starts with a different copy, hence a different bank."""
        cuda.syncthreads()
        # not a constant for the compiler, which must not unroll; there are at least as many threads as copies
        n_copies = min(uint32(copies), uint32(cuda.blockDim.x))
        at = t
        while at < uint32(size):
            total, c = OFFSET(0), uint32(0)
            while c < n_copies:
                place = uint32(at * uint32(copies) + (uint32(t + c) & uint32(copies - 1)))
                total += OFFSET(counts[place])
                counts[place] = uint32(0)
                c = uint32(c + uint32(1))
            if total > OFFSET(0):
                cuda.atomic.add(totals, first + OFFSET(at), COUNTER(total))
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()

    @formula
    def count(f, m, unit, window, counts, start, of_fixed, of_moved):
        """Add one voxel, ``unit`` in all."""
        _, i, _, u = place_of(m, kind, middle, window)
        _, j, shifted, v = place_of(f, kind, middle, window)
        fill(u, kind, taps, 0, window, of_moved)
        fill(v, kind, taps, DROP, window, of_fixed)
        mask_both(i, j, kind, taps, bins, middle, of_moved, of_fixed)
        if kind == GAUSSIAN:
            unit *= reciprocal_fast(total_of(of_moved, taps) * total_of(of_fixed, taps))
        else:
            unit *= float32(2.0**DROP)
        place = OFFSET(uint32(first_word(i, shifted, kind, taps, edge, pad, middle) * uint32(copies) + start))
        for k in range(taps):
            share = of_moved[k] * unit
            for q in range(taps):
                cuda.atomic.add(counts, place + OFFSET((k * edge + q) * copies), float_to_bits(share * of_fixed[q]))

    def body(n, low, high, origin, per, steepness, fixed, moved, totals):
        counts = cuda.shared.array(0, uint32)
        of_moved, of_fixed = cuda.local.array(taps, float32), cuda.local.array(taps, float32)
        f_next, m_next = cuda.local.array(VOXELS, float32), cuda.local.array(VOXELS, float32)
        f_values, m_values = cuda.local.array(VOXELS, float32), cuda.local.array(VOXELS, float32)
        t, window = uint32(cuda.threadIdx.x), window_of(kind, low, high, origin, per, steepness)
        start, volume = uint32(t & uint32(copies - 1)), OFFSET(cuda.blockIdx.y)
        first = OFFSET(volume * OFFSET(size))
        at = t
        while at < uint32(words):
            counts[at] = uint32(0)
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()
        begin, voxels = part_of(n, OFFSET(cuda.gridDim.x), OFFSET(cuda.blockIdx.x))
        begin += OFFSET(volume * n)
        of_f, of_m = address(fixed, begin), address(moved, begin)
        for s in range(VOXELS):
            f_next[s], m_next[s] = ZERO, ZERO
        next_voxels(of_f, of_m, t, voxels, f_next, m_next)
        done, rounds_left, no_number = uint32(0), int32(max_rounds), False
        while done < voxels:
            at, done = uint32(done + t), uint32(done + uint32(THREADS * VOXELS))
            for s in range(VOXELS):
                f_values[s], m_values[s] = f_next[s], m_next[s]
            next_voxels(of_f, of_m, uint32(done + t), voxels, f_next, m_next)  # in flight while the last ones are counted
            for s in range(VOXELS):
                f, m = f_values[s], m_values[s]
                no_number = no_number | (f != f) | (m != m)
                unit = UNIT if uint32(at + uint32(s * THREADS)) < voxels else ZERO
                count(f, m, unit, window, counts, start, of_fixed, of_moved)
            rounds_left = int32(rounds_left - int32(1))
            if rounds_left == int32(0):
                flush(counts, totals, first, t)
                rounds_left = int32(max_rounds)
        flush(counts, totals, first, t)
        if no_number:
            cuda.atomic.max(totals, first, COUNTER(NO_NUMBER))

    return body


@cooperative_kernel(launch_bounds=_bounds)
def information_gradients(kind: int, bins: int, taps: int, pad: int, copies: int) -> Callable[..., None]:
    """``information_gradient_rows``: block row y of the grid computes volume y.

    n: uint64, voxels of a volume;  low ... steepness, factor: float32;  each: uint32, 0 for one value of ``given`` for all
    volumes, else 1;  given: (1,) or (N,);  table: (N edge edge,);  fixed, moved, out: (N n,). Launch with ``THREADS`` threads
    and ``shared=shared_bytes(edge, copies)``.
    """
    edge, middle = bins + 2 * pad, bins // 2
    size = edge * edge

    @formula
    def row_of(shared, place, k, of_fixed):
        """A row of the table times the weights of fixed; the first of Gaussians is 1."""
        first = taps // 2 if kind == GAUSSIAN else 0
        total = shared[place + OFFSET((k * edge + first) * copies)] * of_fixed[first]
        for q in range(taps):
            if q != first:
                total += shared[place + OFFSET((k * edge + q) * copies)] * of_fixed[q]
        return total

    @formula
    def slope(shared, place, g, v, of_moved, of_fixed):
        """G times the derivative with respect to the bin coordinate.

        Of Gaussians, w_k = exp(-h (f - k)^2): 2 h sum w_k (k - mean k) row_k / (sum w_k), with mean k = sum k w_k / sum w_k
        """
        if kind == GAUSSIAN:
            radius = taps // 2
            zeroth = of_moved[radius] * row_of(shared, place, radius, of_fixed)
            first, mean = ZERO, ZERO
            for k in range(1, radius + 1):
                above = of_moved[radius + k] * row_of(shared, place, radius + k, of_fixed)
                below = of_moved[radius - k] * row_of(shared, place, radius - k, of_fixed)
                zeroth = zeroth + above + below
                first = first + float32(k) * above - float32(k) * below if k > 1 else above - below
                step = of_moved[radius + k] - of_moved[radius - k]
                mean = mean + float32(k) * step if k > 1 else step
            total = total_of(of_moved, taps)
            scale = g * reciprocal_fast(total * total * total_of(of_fixed, taps))
            return scale * (first * total - mean * zeroth)
        a, b, c, d = spline_derivative(v)
        upper = a * row_of(shared, place, 0, of_fixed) + b * row_of(shared, place, 1, of_fixed)
        return g * (upper + c * row_of(shared, place, 2, of_fixed) + d * row_of(shared, place, 3, of_fixed))

    def body(n, low, high, origin, per, steepness, factor, each, given, table, fixed, moved, out):
        shared = cuda.shared.array(0, float32)
        of_moved, of_fixed = cuda.local.array(taps, float32), cuda.local.array(taps, float32)
        f_next, m_next = cuda.local.array(VOXELS, float32), cuda.local.array(VOXELS, float32)
        f_values, m_values = cuda.local.array(VOXELS, float32), cuda.local.array(VOXELS, float32)
        t, volume = uint32(cuda.threadIdx.x), OFFSET(cuda.blockIdx.y)
        window, own = window_of(kind, low, high, origin, per, steepness), uint32(t & uint32(copies - 1))
        first, at = OFFSET(volume * OFFSET(size)), t
        n_copies = min(uint32(copies), uint32(cuda.blockDim.x))  # not a constant for the compiler, which must not unroll
        while at < uint32(size):  # each thread starts with a different copy, hence a different bank
            entry, c = table[first + OFFSET(at)], uint32(0)
            while c < n_copies:
                shared[uint32(at * uint32(copies) + (uint32(t + c) & uint32(copies - 1)))] = entry
                c = uint32(c + uint32(1))
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()
        g = factor * given[uint32(uint32(volume) * each)] * per
        if kind == GAUSSIAN:
            g *= TWO * steepness
        begin, voxels = part_of(n, OFFSET(cuda.gridDim.x), OFFSET(cuda.blockIdx.x))
        begin += OFFSET(volume * n)
        of_f, of_m, of_out = address(fixed, begin), address(moved, begin), address(out, begin)
        for s in range(VOXELS):
            f_next[s], m_next[s] = ZERO, ZERO
        next_voxels(of_f, of_m, t, voxels, f_next, m_next)
        at = t
        while at < voxels:
            for s in range(VOXELS):
                f_values[s], m_values[s] = f_next[s], m_next[s]
            following = uint32(at + uint32(THREADS * VOXELS))
            next_voxels(of_f, of_m, following, voxels, f_next, m_next)  # in flight while these derivatives are computed
            where = beyond(of_out, at)
            for s in range(VOXELS):
                m = m_values[s]
                clamped, i, _, u = place_of(m, kind, middle, window)
                _, j, shifted, v = place_of(f_values[s], kind, middle, window)
                fill(u, kind, taps, 0, window, of_moved)
                fill(v, kind, taps, 0, window, of_fixed)
                mask_both(i, j, kind, taps, bins, middle, of_moved, of_fixed)
                word = first_word(i, shifted, kind, taps, edge, pad, middle)
                place = OFFSET(uint32(word * uint32(copies) + own))
                found = slope(shared, place, g, u, of_moved, of_fixed)
                if uint32(at + uint32(s * THREADS)) < voxels:
                    store(where, uint32(s * THREADS), ZERO if (clamped < m) | (clamped > m) else found)
            at = following

    return body

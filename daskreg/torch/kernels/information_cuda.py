"""Mutual information on a GPU: joint histograms of a batch in shared memory, tables of derivatives, and gradients.

As in ``similarity.mutual_information.cuda``: a block counts in 32-bit fixed point in several copies of the histogram, which it
adds to 64-bit totals before a word can overflow, so results do not depend on the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import float32, float64, int32, uint32

from daskreg.kernels.compiler.configuration import COUNTER, OFFSET, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.intrinsics.arithmetic import divide_fast, exp_fast
from daskreg.similarity.mutual_information.cpu import spline, spline_derivative
from daskreg.similarity.mutual_information.cuda import histogram_copies, round_nearest
from daskreg.torch.kernels.information import GAUSSIAN, bin_place

ONE, TWO, ZERO = float32(1), float32(2), float32(0)
FIXED_POINT = 2**20  # counts per voxel
SCALE = float32(FIXED_POINT)
THREADS = block_size(1024, least=32)
TABLE_THREADS = block_size(256, least=32)
GRADIENT_THREADS = block_size(512, least=32)
GRADIENT_BLOCKS = 4  # per multiprocessor
TABLE_BYTES = 44 * 1024  # of shared memory for the copies of a table


def _bounds(*constants: Any) -> tuple[int, int]:
    return THREADS, 1


def table_copies(edge: int) -> int:
    """Copies of a table in a block, for fewer bank conflicts: a power of two, at most 8."""
    fit = max(1, TABLE_BYTES // (4 * edge * edge))
    return min(8, 1 << (fit.bit_length() - 1))


@formula
def fill_gaussian(f, first, taps, bins, steepness, weights):
    """Weights of ``taps`` bins from ``first`` on, up to a factor; 0 for bins that do not exist.  f: bins after the middle one.

    exp(-h (f - k)^2) is in proportion to A^k C_k, A = exp(h (2 f - 1)), C_k = exp(-h k (k - 1)), for k > 0, and likewise below:
    two exponentials for all bins, and no term exceeds 1.
    """
    radius = taps // 2
    up, down = exp_fast(steepness * (TWO * f - ONE)), exp_fast(-steepness * (TWO * f + ONE))
    share = exp_fast(-TWO * steepness)
    above, below, c, factor = ONE, ONE, ONE, ONE
    weights[radius] = ONE
    for k in range(1, radius + 1):
        c, factor, above, below = c * factor, factor * share, above * up, below * down
        weights[radius + k], weights[radius - k] = above * c, below * c
    if first < int32(0) or first > int32(bins - taps):
        for k in range(taps):
            weights[k] = weights[k] if int32(0) <= int32(first + int32(k)) < int32(bins) else ZERO


@formula
def total_of(weights, taps):
    """The sum of the weights."""
    total = ZERO
    for k in range(taps):
        total += weights[k]
    return total


@formula
def fill(value, kind, taps, bins, window, weights):
    """The weights of the bins around an intensity up to a factor; returns its first bin, the factor, and a spline's fraction."""
    low, high, origin, per, steepness = window
    t, first = bin_place(value, kind, taps, low, high, origin, per)
    if kind == GAUSSIAN:
        fill_gaussian(t - float32(int32(first + int32(taps // 2))), first, taps, bins, steepness, weights)
        return first, divide_fast(ONE, total_of(weights, taps)), ZERO
    w = t - float32(int32(first + int32(1)))
    weights[0], weights[1], weights[2], weights[3] = spline(w)
    return first, ONE, w


@formula
def fill_slopes(w, factor, kind, taps, steepness, weights, slopes):
    """The derivatives of the weights that ``fill`` made, up to the same factor; of Gaussians 2 h w_k (k - mean k)."""
    if kind == GAUSSIAN:
        mean = ZERO
        for k in range(1, taps):
            mean += weights[k] * float32(k)
        mean *= factor
        for k in range(taps):
            slopes[k] = TWO * steepness * weights[k] * (float32(k) - mean)
    else:
        slopes[0], slopes[1], slopes[2], slopes[3] = spline_derivative(w)


def histogram_bytes(edge: int) -> int:
    """Dynamic shared memory of ``joint_histograms`` in bytes."""
    return 4 * edge * edge * histogram_copies(edge)


@cooperative_kernel(launch_bounds=_bounds)
def joint_histograms(kind: int, bins: int, taps: int, pad: int) -> Callable[..., None]:
    """``joint_rows``: block row y of the grid counts volume y.  n: uint64, voxels of a volume;  low ... steepness: float32;
    fixed, moved: (N n,);  totals: (N edge edge,) int64, in units of 1 / FIXED_POINT. Launch with
    ``shared=histogram_bytes(edge)``.
    """
    edge = bins + 2 * pad
    copies, size = histogram_copies(edge), edge * edge
    words = size * copies
    max_rounds = max(1, (2**32 // FIXED_POINT - 1) * copies // THREADS)

    @formula
    def add(counts, at, value):
        cuda.atomic.add(counts, at, value)

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

    def body(n, low, high, origin, per, steepness, fixed, moved, totals):
        counts = cuda.shared.array(0, uint32)
        of_moved = cuda.local.array(taps, float32)
        of_fixed = cuda.local.array(taps, float32)
        t, window = uint32(cuda.threadIdx.x), (low, high, origin, per, steepness)
        start, volume = uint32(t & uint32(copies - 1)), OFFSET(cuda.blockIdx.y)
        first = OFFSET(volume * OFFSET(size))
        base = OFFSET(volume * n)
        at = t
        while at < uint32(words):
            counts[at] = uint32(0)
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()
        rounds = OFFSET(OFFSET(n + OFFSET(THREADS - 1)) // OFFSET(THREADS))
        blocks, block = OFFSET(cuda.gridDim.x), OFFSET(cuda.blockIdx.x)
        current, last = OFFSET(rounds * block // blocks), OFFSET(rounds * OFFSET(block + OFFSET(1)) // blocks)
        v = OFFSET(current * OFFSET(THREADS) + OFFSET(t))
        inside = current < last and v < n
        f_value, m_value = (fixed[OFFSET(base + v)], moved[OFFSET(base + v)]) if inside else (ZERO, ZERO)
        rounds_left = int32(max_rounds)
        while current < last:
            f, m, counted = f_value, m_value, inside
            current, v = OFFSET(current + OFFSET(1)), OFFSET(v + OFFSET(THREADS))
            inside = current < last and v < n
            if inside:  # in flight while the last ones are counted
                f_value, m_value = fixed[OFFSET(base + v)], moved[OFFSET(base + v)]
            if counted:
                i, of_m, _ = fill(m, kind, taps, bins, window, of_moved)
                j, of_f, _ = fill(f, kind, taps, bins, window, of_fixed)
                factor = of_m * of_f * SCALE
                word = uint32(int32(i + int32(pad)) * int32(edge) + int32(j + int32(pad)))
                place = OFFSET(uint32(word * uint32(copies) + start))
                for k in range(taps):
                    share = of_moved[k] * factor
                    for q in range(taps):
                        add(counts, OFFSET(place + OFFSET((k * edge + q) * copies)), uint32(round_nearest(share * of_fixed[q])))
            rounds_left = int32(rounds_left - int32(1))
            if rounds_left == int32(0):
                flush(counts, totals, first, t)
                rounds_left = int32(max_rounds)
        flush(counts, totals, first, t)

    return body


@cooperative_kernel()
def information_tables_of_batch(edge: int) -> Callable[..., None]:
    """``information_tables``, a block per volume, in double precision.

    numerator, denominator, additive, scale: float32;  totals: (N edge edge,) int64;  values: (N,) float32, scale MI;  to_moved,
    to_fixed: (N edge edge,) float32
    """
    size, count = edge * edge, TABLE_THREADS

    @formula
    def terms_of(p, product, numerator, denominator, additive):
        """The logarithm, and the derivatives with respect to p and to p_i p_j."""
        ratio = (p + numerator) / (product + denominator) if product + denominator > float64(0) else float64(0)
        inside = ratio + additive
        logarithm, share = float64(0), float64(0)
        if inside > float64(0):
            logarithm, share = math.log(inside), p / inside / (product + denominator)
        return logarithm, logarithm + share, -share * ratio

    def body(numerator, denominator, additive, scale, totals, values, to_moved, to_fixed):
        of_moved = cuda.shared.array(edge, float64)
        of_fixed = cuda.shared.array(edge, float64)
        more_moved = cuda.shared.array(edge, float64)
        more_fixed = cuda.shared.array(edge, float64)
        parts = cuda.shared.array(count, float64)
        t, volume = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        first = uint32(volume * uint32(size))
        a, b, c = float64(numerator), float64(denominator), float64(additive)
        i = t
        while i < uint32(edge):
            row, column = COUNTER(0), COUNTER(0)
            for j in range(edge):
                row += totals[uint32(first + uint32(i * uint32(edge) + uint32(j)))]
                column += totals[uint32(first + uint32(uint32(j * edge) + i))]
            of_moved[i], of_fixed[i] = float64(row), float64(column)
            i = uint32(i + uint32(count))
        cuda.syncthreads()
        n = float64(0)
        for j in range(edge):
            n += of_moved[j]
        cuda.syncthreads()
        i = t
        while i < uint32(edge):
            of_moved[i], of_fixed[i] = of_moved[i] / n, of_fixed[i] / n
            i = uint32(i + uint32(count))
        cuda.syncthreads()
        i = t
        while i < uint32(edge):
            row, column = float64(0), float64(0)
            for j in range(edge):
                p = float64(totals[uint32(first + uint32(i * uint32(edge) + uint32(j)))]) / n
                row += terms_of(p, of_moved[i] * of_fixed[j], a, b, c)[2] * of_fixed[j]
                p = float64(totals[uint32(first + uint32(uint32(j * edge) + i))]) / n
                column += terms_of(p, of_moved[j] * of_fixed[i], a, b, c)[2] * of_moved[j]
            more_moved[i], more_fixed[i] = row, column
            i = uint32(i + uint32(count))
        cuda.syncthreads()
        information, at = float64(0), t
        while at < uint32(size):
            i, j = uint32(at // uint32(edge)), uint32(at % uint32(edge))
            p = float64(totals[uint32(first + at)]) / n
            logarithm, to_joint, _ = terms_of(p, of_moved[i] * of_fixed[j], a, b, c)
            information += p * logarithm
            to_moved[uint32(first + at)] = float32(to_joint + more_moved[i])
            to_fixed[uint32(first + uint32(j * uint32(edge) + i))] = float32(to_joint + more_fixed[j])
            at = uint32(at + uint32(count))
        parts[t] = information
        half = uint32(count // 2)
        while half > uint32(0):
            cuda.syncthreads()
            if t < half:
                parts[t] += parts[uint32(t + half)]
            half = uint32(half >> uint32(1))
        if t == uint32(0):
            values[volume] = scale * float32(parts[0])

    return body


@cooperative_kernel()
def information_gradients(kind: int, bins: int, taps: int, pad: int) -> Callable[..., None]:
    """``information_gradient_rows``: block row y of the grid computes volume y.

    n: uint64, voxels of a volume;  low ... steepness, factor: float32;  each: uint32, 0 for one value of ``given`` for all
    volumes, else 1;  given: (1,) or (N,);  table: (N edge edge,);  fixed, moved, out: (N n,)
    """
    edge = bins + 2 * pad
    copies = table_copies(edge)
    words = edge * edge * copies

    def body(n, low, high, origin, per, steepness, factor, each, given, table, fixed, moved, out):
        shared = cuda.shared.array(words, float32)
        of_moved = cuda.local.array(taps, float32)
        of_fixed = cuda.local.array(taps, float32)
        slopes = cuda.local.array(taps, float32)
        t, volume, window = uint32(cuda.threadIdx.x), OFFSET(cuda.blockIdx.y), (low, high, origin, per, steepness)
        own, first, at = uint32(t & uint32(copies - 1)), OFFSET(volume * OFFSET(edge * edge)), t
        while at < uint32(words):
            shared[at] = table[OFFSET(first + OFFSET(uint32(at // uint32(copies))))]
            at = uint32(at + uint32(GRADIENT_THREADS))
        cuda.syncthreads()
        g = factor * given[uint32(uint32(volume) * each)] * per
        base = OFFSET(volume * n)
        step = OFFSET(uint32(cuda.gridDim.x)) * OFFSET(GRADIENT_THREADS)
        v = OFFSET(uint32(cuda.blockIdx.x)) * OFFSET(GRADIENT_THREADS) + OFFSET(t)
        f_value, m_value = (fixed[OFFSET(base + v)], moved[OFFSET(base + v)]) if v < n else (ZERO, ZERO)
        while v < n:
            f, m, following = f_value, m_value, OFFSET(v + step)
            if following < n:  # in flight while this voxel's derivative is computed
                f_value, m_value = fixed[OFFSET(base + following)], moved[OFFSET(base + following)]
            i, of_m, w = fill(m, kind, taps, bins, window, of_moved)
            fill_slopes(w, of_m, kind, taps, steepness, of_moved, slopes)
            j, of_f, _ = fill(f, kind, taps, bins, window, of_fixed)
            word = uint32(int32(i + int32(pad)) * int32(edge) + int32(j + int32(pad)))
            place, total = OFFSET(uint32(word * uint32(copies) + own)), ZERO
            for k in range(taps):
                row = ZERO
                for q in range(taps):
                    row += shared[OFFSET(place + OFFSET((k * edge + q) * copies))] * of_fixed[q]
                total += slopes[k] * row
            out[OFFSET(base + v)] = g * of_m * of_f * total if low <= m <= high else ZERO
            v = following

    return body

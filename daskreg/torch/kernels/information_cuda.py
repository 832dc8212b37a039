"""Mutual information on a GPU: joint histograms of a batch in shared memory, tables of derivatives, and gradients.

As in ``similarity.mutual_information.cuda``: a block counts in 32-bit fixed point in several copies of the histogram, which it
adds to 64-bit totals before a word can overflow, so results do not depend on the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import float32, float64, int32, uint32, uint64

from daskreg.kernels.compiler.configuration import COUNTER, SIMULATED, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.similarity.mutual_information.cuda import histogram_copies, round_nearest
from daskreg.torch.kernels.information import bin_place, fill_slopes, fill_weights

ONE, ZERO = float32(1), float32(0)
FIXED_POINT = 2**20  # counts per voxel
SCALE = float32(FIXED_POINT)
THREADS = block_size(1024, least=32)
TABLE_THREADS = block_size(256, least=32)
GRADIENT_THREADS = block_size(256, least=32)
VOXELS_PER_LOAD = 4  # loads in flight per thread
OFFSET: Any = int if SIMULATED else uint64


def _bounds(*constants: Any) -> tuple[int, int]:
    return THREADS, 1


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
    max_rounds = max(1, (2**32 // FIXED_POINT - 1) * copies // (THREADS * VOXELS_PER_LOAD))

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
        f_values = cuda.local.array(VOXELS_PER_LOAD, float32)
        m_values = cuda.local.array(VOXELS_PER_LOAD, float32)
        of_moved = cuda.local.array(taps, float32)
        of_fixed = cuda.local.array(taps, float32)
        t = uint32(cuda.threadIdx.x)
        start, volume = uint32(t & uint32(copies - 1)), OFFSET(cuda.blockIdx.y)
        begin, first = OFFSET(volume * n), OFFSET(volume * OFFSET(size))
        end = OFFSET(begin + n)
        at = t
        while at < uint32(words):
            counts[at] = uint32(0)
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()
        round_size = OFFSET(THREADS * VOXELS_PER_LOAD)
        rounds = OFFSET(OFFSET(n + round_size - OFFSET(1)) // round_size)
        blocks, block = OFFSET(cuda.gridDim.x), OFFSET(cuda.blockIdx.x)
        current, last = OFFSET(rounds * block // blocks), OFFSET(rounds * OFFSET(block + OFFSET(1)) // blocks)
        rounds_left = int32(max_rounds)
        while current < last:
            base = OFFSET(begin + current * round_size)
            for s in range(VOXELS_PER_LOAD):
                voxel = OFFSET(base + OFFSET(uint32(t + uint32(s * THREADS))))
                f_values[s], m_values[s] = ZERO, ZERO
                if voxel < end:
                    f_values[s], m_values[s] = fixed[voxel], moved[voxel]
            for s in range(VOXELS_PER_LOAD):
                if OFFSET(base + OFFSET(uint32(t + uint32(s * THREADS)))) < end:
                    c, i = bin_place(m_values[s], kind, taps, low, high, origin, per)
                    d, j = bin_place(f_values[s], kind, taps, low, high, origin, per)
                    fill_weights(c, i, kind, taps, bins, steepness, of_moved)
                    fill_weights(d, j, kind, taps, bins, steepness, of_fixed)
                    place = int32(int32(i + int32(pad)) * int32(edge) + int32(j + int32(pad)))
                    for k in range(taps):
                        share = of_moved[k] * SCALE
                        for q in range(taps):
                            word = uint32(uint32(place + int32(k * edge + q)) * uint32(copies) + start)
                            cuda.atomic.add(counts, word, uint32(round_nearest(share * of_fixed[q])))
            current, rounds_left = OFFSET(current + OFFSET(1)), int32(rounds_left - int32(1))
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
    size = edge * edge

    def body(n, low, high, origin, per, steepness, factor, each, given, table, fixed, moved, out):
        shared = cuda.shared.array(size, float32)
        of_moved = cuda.local.array(taps, float32)
        of_fixed = cuda.local.array(taps, float32)
        slopes = cuda.local.array(taps, float32)
        t, volume = uint32(cuda.threadIdx.x), OFFSET(cuda.blockIdx.y)
        at = t
        while at < uint32(size):
            shared[at] = table[OFFSET(volume * OFFSET(size) + OFFSET(at))]
            at = uint32(at + uint32(GRADIENT_THREADS))
        cuda.syncthreads()
        g = factor * given[uint32(uint32(volume) * each)] * per
        step = OFFSET(uint32(cuda.gridDim.x)) * OFFSET(GRADIENT_THREADS)
        v = OFFSET(uint32(cuda.blockIdx.x)) * OFFSET(GRADIENT_THREADS) + OFFSET(t)
        while v < n:
            voxel = OFFSET(volume * n + v)
            value = moved[voxel]
            c, i = bin_place(value, kind, taps, low, high, origin, per)
            d, j = bin_place(fixed[voxel], kind, taps, low, high, origin, per)
            fill_weights(c, i, kind, taps, bins, steepness, of_moved)
            fill_slopes(c, i, kind, taps, steepness, of_moved, slopes)
            fill_weights(d, j, kind, taps, bins, steepness, of_fixed)
            place, total = int32(int32(i + int32(pad)) * int32(edge) + int32(j + int32(pad))), ZERO
            for k in range(taps):
                row = ZERO
                for q in range(taps):
                    row += shared[uint32(place + int32(k * edge + q))] * of_fixed[q]
                total += slopes[k] * row
            out[voxel] = g * total if low <= value <= high else ZERO
            v = OFFSET(v + step)

    return body

"""The joint histogram in shared memory, and its table of logarithms.

A block counts in 32-bit integers in shared memory, in several copies of the histogram. Threads of a warp often meet the same bin
(the background); with copies they add to different words, and with 32 copies each lane uses its own bank. Before a word can
overflow, the block adds its copies to the 64-bit totals. Sums of integers do not depend on blocks or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import float32, float64, int32, int64, uint32

from daskreg.kernels.compiler.configuration import COUNTER, OFFSET, block_memory, block_size, multiprocessors
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import Shape, box, offsets
from daskreg.kernels.intrinsics.half import as_float32, half_constants, storage_type
from daskreg.similarity.mutual_information.cpu import FIXED_POINT, SCALE, bin_coordinate, spline

ONE, ZERO = float32(1), float32(0)
THREADS = block_size(1024, least=32)  # of a block that counts: as many as a multiprocessor has, so that all share one histogram
TABLE_THREADS = block_size(256)
VOXELS_PER_LOAD = 4  # loads in flight per thread
MAX_HISTOGRAM_BYTES = 200 * 1024  # of shared memory
# additions to a word before it could overflow: a voxel adds at most 4/9 of its weight to a bin
MAX_ADDITIONS = 2**32 // FIXED_POINT // 2 * 2


def histogram_copies(bins: int) -> int:
    """Copies of the histogram that fit into shared memory, a power of two."""
    fit = max(1, min(MAX_HISTOGRAM_BYTES, block_memory()) // (4 * bins * bins))
    return min(32, 1 << (fit.bit_length() - 1))


def histogram_bytes(bins: int) -> int:
    """Dynamic shared memory of ``joint_histogram_shared`` in bytes."""
    return 4 * bins * bins * histogram_copies(bins)


@formula
def round_nearest(value):
    """The nearest integer to a value in 0 .. 2^22."""
    return int32(value + float32(0.5))


@round_nearest.intrinsic
def _nearest_by_bits() -> Callable[..., Any]:
    """Two cheap instructions: the sum with 2^23 has the integer in its last bits."""
    from numba.cuda import libdevice

    def nearest_by_bits(value):
        return int32(libdevice.float_as_int(value + float32(8388608)) - int32(0x4B000000))

    return nearest_by_bits


@formula
def add_spline_weights(add, counts, start, bins, copies, moved_value, fixed_value, w):
    """Add 2^20 w w_i(moved) w_j(fixed) to 4 x 4 bins of the copy at ``start``, with ``add(counts, index, value)``."""
    i, moved_fraction = bin_coordinate(moved_value, bins)
    j, fixed_fraction = bin_coordinate(fixed_value, bins)
    moved_weights, fixed_weights = spline(moved_fraction), spline(fixed_fraction)
    first, w = OFFSET(start + uint32(uint32(uint32(i) * uint32(bins) + uint32(j)) * uint32(copies))), w * SCALE
    for p in range(4):
        share = w * moved_weights[p]
        for q in range(4):
            add(counts, OFFSET(first + OFFSET((p * bins + q) * copies)), uint32(round_nearest(share * fixed_weights[q])))


@formula
def load_voxels(base, end, t, threads, masked, none, fixed, weight, moved, fixed_values, weights, moved_values):
    """Load some voxels of a thread, ``threads`` apart, before any is used; weight 0 behind the last."""
    for s in range(len(weights)):
        voxel = OFFSET(base + OFFSET(uint32(t + uint32(s * threads))))
        moved_values[s], fixed_values[s], weights[s] = ZERO, none, ZERO
        if voxel < end:
            moved_values[s], fixed_values[s] = moved[voxel], fixed[voxel]
            weights[s] = weight[voxel] if masked else ONE


def histogram_bounds(bins: int, masked: bool, half: bool = False) -> tuple[int, int]:
    """Most threads per block, fewest blocks per multiprocessor."""
    return THREADS, 1


@cooperative_kernel(launch_bounds=histogram_bounds)
def joint_histogram_shared(bins: int, masked: bool, half: bool = False) -> Callable[..., None]:
    """``joint_histogram``: ``totals[i B + j] += 2^20 w w_i(moved) w_j(fixed)``.

    Launch with about as many blocks along x as the device has multiprocessors, ``THREADS`` threads and
    ``shared=histogram_bytes(bins)``. begin, end: uint64, the voxels to count;  fixed, moved: (N,) float32 in [0, 1], moved NaN
    outside the domain;  weight: (N,) in [0, 1] if ``masked``, else (0,);  totals: (B B,) int64, to which the counts are added.
    """
    copies = histogram_copies(bins)
    size = bins * bins
    words = size * copies
    kind, none = storage_type(half)
    max_rounds = max(1, MAX_ADDITIONS * copies // (THREADS * VOXELS_PER_LOAD))  # before a block must flush its histogram

    @formula
    def add(counts, at, value):
        cuda.atomic.add(counts, at, value)

    @formula
    def flush(counts, totals, t):
        """Add up and clear the copies; each thread starts with a different copy, hence a different bank."""
        cuda.syncthreads()
        n_copies = min(uint32(copies), uint32(cuda.blockDim.x))  # not a constant for the compiler, which must not unroll
        at = t
        while at < uint32(size):
            total, c = OFFSET(0), uint32(0)
            while c < n_copies:
                place = uint32(at * uint32(copies) + (uint32(t + c) & uint32(copies - 1)))
                total += OFFSET(counts[place])
                counts[place] = uint32(0)
                c = uint32(c + uint32(1))
            if total > OFFSET(0):
                cuda.atomic.add(totals, at, COUNTER(total))
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()

    def body(begin, end, fixed, weight, moved, totals):
        counts = cuda.shared.array(0, uint32)
        moved_values = cuda.local.array(VOXELS_PER_LOAD, float32)
        fixed_values = cuda.local.array(VOXELS_PER_LOAD, kind)
        w = cuda.local.array(VOXELS_PER_LOAD, float32)
        t = uint32(cuda.threadIdx.x)
        start = uint32(t & uint32(copies - 1))
        at = t
        while at < uint32(words):
            counts[at] = uint32(0)
            at = uint32(at + uint32(THREADS))
        cuda.syncthreads()
        round_size = OFFSET(THREADS * VOXELS_PER_LOAD)
        rounds = OFFSET(OFFSET(OFFSET(end - begin) + round_size - OFFSET(1)) // round_size)
        blocks, block = OFFSET(cuda.gridDim.x), OFFSET(cuda.blockIdx.x)
        current, last = OFFSET(rounds * block // blocks), OFFSET(rounds * OFFSET(block + OFFSET(1)) // blocks)
        rounds_left = int32(max_rounds)
        while current < last:
            base = OFFSET(begin + current * round_size)
            load_voxels(base, end, t, THREADS, masked, none, fixed, weight, moved, fixed_values, w, moved_values)
            for s in range(VOXELS_PER_LOAD):
                if w[s] > ZERO and moved_values[s] == moved_values[s]:
                    add_spline_weights(add, counts, start, bins, copies, moved_values[s], as_float32(fixed_values[s]), w[s])
            current, rounds_left = OFFSET(current + OFFSET(1)), int32(rounds_left - int32(1))
            if rounds_left == int32(0):
                flush(counts, totals, t)
                rounds_left = int32(max_rounds)
        flush(counts, totals, t)

    return body


@cooperative_kernel()
def information_table(bins: int) -> Callable[..., None]:
    """T_ij = log(p_ij / (p_i p_j)), 0 where p_ij is 0, and the loss: one block of ``TABLE_THREADS`` threads, in double precision.

    totals: (B B,) int64;  table: (B B,) float32;  value: (2,) float64, minus the mutual information in nats, and the number of
    voxels counted.
    """
    size, threads = bins * bins, TABLE_THREADS

    def body(totals, table, value):
        moved_marginal = cuda.shared.array(bins, int64)
        fixed_marginal = cuda.shared.array(bins, int64)
        parts = cuda.shared.array(threads, float64)
        t = uint32(cuda.threadIdx.x)
        i = t
        while i < uint32(bins):
            row, column = COUNTER(0), COUNTER(0)
            for j in range(bins):
                row += totals[uint32(i * uint32(bins) + uint32(j))]
                column += totals[uint32(uint32(j * bins) + i)]
            moved_marginal[i], fixed_marginal[i] = row, column
            i = uint32(i + uint32(threads))
        cuda.syncthreads()
        total_count = COUNTER(0)
        for j in range(bins):
            total_count += moved_marginal[j]
        n = float64(max(total_count, COUNTER(1)))
        information = float64(0)
        at = t
        while at < uint32(size):
            p, ratio = float64(totals[at]) / n, float64(0)
            if p > float64(0):
                i, j = uint32(at // uint32(bins)), uint32(at % uint32(bins))
                ratio = math.log(p / (float64(moved_marginal[i]) / n * (float64(fixed_marginal[j]) / n)))
            table[at] = float32(ratio)
            information += p * ratio
            at = uint32(at + uint32(threads))
        parts[t] = information
        cuda.syncthreads()
        if t == uint32(0):
            total = float64(0)
            for e in range(threads):
                total += parts[e]
            value[0], value[1] = -total, float64(total_count) / float64(FIXED_POINT)

    return body


def count_joint(shape: Shape, bins: int, fixed: Any, weight: Any, moved: Any, totals: Any) -> None:
    """Add the joint counts of a box to totals (B B,) int64."""
    fields = fixed.reshape(-1), weight.reshape(-1), moved.reshape(-1), totals
    blocks, threads = (multiprocessors(), 1, 1), (THREADS, 1, 1)
    shared = histogram_bytes(bins)
    joint_histogram_shared(
        (bins, weight.size > 0, *half_constants(fixed)), blocks, threads, *offsets(box(shape)), *fields, shared=shared
    )


def compute_table(bins: int, totals: Any, table: Any, value: Any) -> None:
    """The table of logarithms and the loss, from the counts."""
    information_table((bins,), (1, 1, 1), (TABLE_THREADS, 1, 1), totals, table, value)

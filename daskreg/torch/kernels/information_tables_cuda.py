"""The value of mutual information and the tables of its derivatives on a GPU, from joint histograms."""

from __future__ import annotations

import math
from collections.abc import Callable

from numba import float32, float64, uint32

from daskreg.kernels.compiler.configuration import COUNTER, block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.formula import formula
from daskreg.torch.kernels.blocks import block_total
from daskreg.torch.kernels.information_cuda import NO_NUMBER

THREADS = block_size(512, least=32)
PARTS = 8  # of a line of a table, which are added by threads of their own


@cooperative_kernel()
def information_tables_of_batch(edge: int) -> Callable[..., None]:
    """``information_tables``, a block per volume, in double precision.

    numerator, denominator, additive, scale: float32;  totals: (N edge edge,) int64;  values: (N,) float32, scale MI;  to_moved,
    to_fixed: (N edge edge,) float32
    """
    size, threads, lines = edge * edge, THREADS, 2 * edge
    room, add_terms = max(lines * PARTS, threads), block_total(THREADS)

    @formula
    def entry(line, j):
        """The j-th entry of a line: of a row, or of a column after all rows."""
        row = uint32(line * uint32(edge) + j)
        return row if line < uint32(edge) else uint32(uint32(j * uint32(edge)) + uint32(line - uint32(edge)))

    @formula
    def terms_of(p, product, numerator, denominator, additive):
        """The logarithm, and the derivatives with respect to p and to p_i p_j."""
        ratio = float64(0) if product + denominator <= float64(0) else (p + numerator) / (product + denominator)
        inside = ratio + additive
        logarithm, share = p * float64(0), p * float64(0)
        if inside > float64(0):
            logarithm, share = math.log(inside), p / inside / (product + denominator)
        return logarithm, logarithm + share, -share * ratio

    @formula
    def add_parts(parts, sums, t):
        """The sums of all lines from those of their parts."""
        cuda.syncthreads()
        line = t
        while line < uint32(lines):
            total = float64(0)
            for part in range(PARTS):
                total += parts[uint32(line * uint32(PARTS) + uint32(part))]
            sums[line] = total
            line = uint32(line + uint32(threads))
        cuda.syncthreads()

    def body(numerator, denominator, additive, scale, totals, values, to_moved, to_fixed):
        parts = cuda.shared.array(room, float64)
        marginal, more = cuda.shared.array(lines, float64), cuda.shared.array(lines, float64)
        t, volume = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        first = uint32(volume * uint32(size))
        a, b, c = float64(numerator), float64(denominator), float64(additive)
        item = t
        while item < uint32(lines * PARTS):
            line, j, total = uint32(item // uint32(PARTS)), uint32(item % uint32(PARTS)), COUNTER(0)
            while j < uint32(edge):
                total += totals[uint32(first + entry(line, j))]
                j = uint32(j + uint32(PARTS))
            parts[item] = float64(total)
            item = uint32(item + uint32(threads))
        add_parts(parts, marginal, t)
        n = float64(0)
        for j in range(edge):
            n += marginal[j]
        n = n if n < float64(NO_NUMBER // 2) else float64(math.nan)
        information, at = float64(0), t
        while at < uint32(size):
            i, j = uint32(at // uint32(edge)), uint32(at % uint32(edge))
            p, product = float64(totals[uint32(first + at)]) / n, marginal[i] / n * (marginal[uint32(j + uint32(edge))] / n)
            logarithm, to_joint, to_product = terms_of(p, product, a, b, c)
            information += p * logarithm
            to_moved[uint32(first + at)], to_fixed[uint32(first + at)] = float32(to_joint), float32(to_product)
            at = uint32(at + uint32(threads))
        cuda.syncthreads()
        item = t
        while item < uint32(lines * PARTS):
            line, j, total = uint32(item // uint32(PARTS)), uint32(item % uint32(PARTS)), float64(0)
            other = uint32(edge) if line < uint32(edge) else uint32(0)
            while j < uint32(edge):
                total += float64(to_fixed[uint32(first + entry(line, j))]) * (marginal[uint32(other + j)] / n)
                j = uint32(j + uint32(PARTS))
            parts[item] = total
            item = uint32(item + uint32(threads))
        add_parts(parts, more, t)
        at = t
        while at < uint32(size):
            i, j = uint32(at // uint32(edge)), uint32(at % uint32(edge))
            to_joint = float64(to_moved[uint32(first + at)])
            to_moved[uint32(first + at)] = float32(to_joint + more[i])
            to_fixed[uint32(first + uint32(j * uint32(edge) + i))] = float32(to_joint + more[uint32(j + uint32(edge))])
            at = uint32(at + uint32(threads))
        parts[t] = information
        add_terms(parts, t)
        if t == uint32(0):
            values[volume] = scale * float32(parts[0])

    return body

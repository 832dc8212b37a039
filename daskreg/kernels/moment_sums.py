"""The sums that a correlation is made of, in one pass, with the bits of NumPy's sums of float64.

NumPy adds numbers up by halves, down to blocks of at most 128, and a block in eight lanes. Products of two float32 are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float64
from numpy.typing import NDArray

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import row_kernel

MOMENTS = 6  # 1, F, M, FF, MM, FM
LANES, BLOCK = 8, 128
DEPTH = 64  # halves of halves
MERGE = -1
ZERO = float64(0)


@formula
def lane_sums(fixed, moved, start, stop):
    """Sums of 1, F, M, FF, MM, FM from start to stop, a multiple of eight apart, where moved is finite; arrays (N,) float32."""
    sums = np.zeros((MOMENTS, LANES))
    for i in range(start, stop):
        f, m = float64(fixed[i]), float64(moved[i])
        if m - m == ZERO:
            k = (i - start) % LANES
            for n, value in enumerate((float64(1), f, m, f * f, m * m, f * m)):
                sums[n, k] += value
    s = ((sums[:, 0] + sums[:, 1]) + (sums[:, 2] + sums[:, 3])) + ((sums[:, 4] + sums[:, 5]) + (sums[:, 6] + sums[:, 7]))
    return s[0], s[1], s[2], s[3], s[4], s[5]


@lane_sums.on_cpu
def _eight_at_once() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def sum_lanes(typing, fixed, moved, start, stop):
        def generate(context, builder, signature, arguments):
            wide, single, lane = ir.DoubleType(), ir.FloatType(), ir.IntType(32)
            wides, singles = ir.VectorType(wide, 8), ir.VectorType(single, 8)
            zero, zeros, ones = (
                ir.Constant(t, v) for t, v in ((singles, None), (wides, None), (wides, [ir.Constant(wide, 1)] * 8))
            )
            arrays = [context.make_array(t)(context, builder, a).data for t, a in zip(signature.args[:2], arguments[:2])]
            totals = [cgutils.alloca_once_value(builder, zeros) for _ in range(6)]
            step = ir.Constant(arguments[2].type, 8)
            with cgutils.for_range_slice(builder, arguments[2], arguments[3], step) as (at, _):
                f, m = (builder.load(builder.bitcast(builder.gep(data, [at]), singles.as_pointer()), align=4) for data in arrays)
                finite = builder.fcmp_ordered("==", builder.fsub(m, m), zero)
                f, m = (builder.fpext(builder.select(finite, v, zero), wides) for v in (f, m))
                products = builder.fmul(f, f), builder.fmul(m, m), builder.fmul(f, m)
                for total, value in zip(totals, (builder.select(finite, ones, zeros), f, m, *products)):
                    builder.store(builder.fadd(builder.load(total), value), total)
            found = []
            for total in totals:
                parts = [builder.extract_element(builder.load(total), ir.Constant(lane, k)) for k in range(8)]
                while len(parts) > 1:
                    parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2])]
                found += parts
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(types.float64, 6)(fixed, moved, types.int64, types.int64), generate

    def lane_sums(fixed, moved, start, stop):
        return sum_lanes(fixed, moved, start, stop)

    return lane_sums


@formula
def block_sums(fixed, moved, start, count, sums):
    """The sums of at most BLOCK voxels; sums: (6,) float64."""
    stop = start + count - count % LANES
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = lane_sums(fixed, moved, start, stop)
    for i in range(stop, start + count):
        f, m = float64(fixed[i]), float64(moved[i])
        if m - m == ZERO:
            sums[0] += float64(1)
            sums[1] += f
            sums[2] += m
            sums[3] += f * f
            sums[4] += m * m
            sums[5] += f * m


@row_kernel(items=lambda fixed, moved, starts, *_: len(starts))
def moment_rows(begin, end, fixed, moved, starts, counts, sums):
    """Sums of 1, F, M, FF, MM, FM of some rows where moved is finite, with the bits of ``numpy.sum`` of each row.

    fixed, moved: (N,) float32;  starts, counts: (rows,) int64;  sums: (6, rows) float64
    """
    for row in range(begin, end):
        todo, halves = np.empty(3 * DEPTH, np.int64), np.empty((DEPTH, MOMENTS))
        todo[0], waiting, done, at = counts[row], 1, 0, starts[row]
        while waiting > 0:
            waiting -= 1
            n = todo[waiting]
            if n == MERGE:
                done -= 1
                for k in range(MOMENTS):
                    halves[done - 1, k] += halves[done, k]
            elif n <= BLOCK:
                block_sums(fixed, moved, at, n, halves[done])
                done, at = done + 1, at + n
            else:
                half = n // 2 - n // 2 % LANES
                todo[waiting], todo[waiting + 1], todo[waiting + 2] = MERGE, n - half, half
                waiting += 3
        for k in range(MOMENTS):
            sums[k, row] = halves[0, k]


def moments_of_rows(fixed: NDArray[np.float32], moved: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums (6, rows) of rows of so many voxels, one after the other, of arrays of any shape."""
    sums = np.empty((MOMENTS, len(counts)))
    moment_rows(fixed.reshape(-1), moved.reshape(-1), np.cumsum(counts) - counts, counts, sums)
    return sums

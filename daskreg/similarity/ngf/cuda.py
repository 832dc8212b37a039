"""Normalised gradient fields on a GPU: the body of the CPU, with sums in integers that stay on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int64, uint32

from daskreg.kernels.compiler.configuration import block_size
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.launch import extent
from daskreg.kernels.intrinsics.arithmetic import round_int64
from daskreg.kernels.sampling.cuda import block_sum
from daskreg.kernels.weights import FIXED_POINT_SCALE
from daskreg.similarity.ngf.cpu import write_factors, write_smoothed_factors

THREADS = block_size(128)  # threads of a block, which share a row


@cooperative_kernel()
def ngf_counted(smoothed):
    """``ngf_factors``, or ``ngf_smoothed_factors``, with its sums in units of 1 / FIXED_POINT_SCALE.

    Arguments: n (first plane within the arrays, planes, rows, columns; uint32), own (the first plane whose voxels count, and the
    one behind the last; uint32), eta_squared, of_product, of_square, fixed (float32, or uint16 with the bits of float16),
    weight (or empty), moved (Z, Y, X), factors (3, Z, Y, X), totals (2,) int64.
    """
    threads, tally, write = THREADS, block_sum(THREADS), write_smoothed_factors if smoothed else write_factors

    def body(n, own, eta_squared, of_product, of_square, fixed, weight, moved, factors, totals):
        x = uint32(uint32(cuda.blockIdx.x) * uint32(threads) + uint32(cuda.threadIdx.x))
        y, z = uint32(cuda.blockIdx.y), uint32(uint32(cuda.blockIdx.z) + n[0])
        a, b = int64(0), int64(0)
        if x < n[3]:
            value, w = write(z, y, x, False, eta_squared, of_product, of_square, fixed, weight, moved, factors)
            if z >= own[0] and z < own[1]:
                a, b = round_int64(value * float32(FIXED_POINT_SCALE)), round_int64(w * float32(FIXED_POINT_SCALE))
        tally(cuda.shared.array((2, threads), int64), a, b, totals)

    return body


def count_factors(
    planes: range, own: range, smoothed: bool, constants: Any, fixed: Any, weight: Any, moved: Any, factors: Any, totals: Any
) -> None:
    """Factors of the planes; the sums of those that are a rank's own are added to totals (2,) int64.

    smoothed: by smoothed differences;  constants: eta_squared, of_product, of_square
    """
    _, ny, nx = moved.shape
    if len(planes):
        blocks = -(-nx // THREADS), ny, len(planes)
        ends = np.uint32(own.start), np.uint32(own.stop)
        images = fixed, weight, moved, factors
        ngf_counted((smoothed,), blocks, (THREADS,), extent((planes, ny, nx)), ends, *constants, *images, totals)

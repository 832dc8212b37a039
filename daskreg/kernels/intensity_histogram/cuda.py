"""Histogram of an image's intensities on a GPU: blocks count in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, int32, uint32

from daskreg.kernels.compiler.configuration import COUNTER, OFFSET, block_size, multiprocessors
from daskreg.kernels.compiler.cooperative import cooperative_kernel
from daskreg.kernels.compiler.launch import Shape, box, offsets

ZERO = float32(0)
MAX_BINS = 4096  # most bins of a histogram
THREADS = block_size(512)  # of a block


@cooperative_kernel(launch_bounds=(512, 2))
def intensity_histogram_shared() -> Callable[..., None]:
    """``intensity_histogram`` of flat voxels: each block counts in shared memory.

    begin, end: uint64, the voxels;  low, width: float32;  image: (N,) float32;  totals: (B,) int64, to which the counts are added
    """
    threads, max_bins = THREADS, MAX_BINS

    def body(begin, end, low, width, image, totals):
        counts = cuda.shared.array(max_bins, int32)
        t, bins = uint32(cuda.threadIdx.x), uint32(totals.shape[0])
        at = t
        while at < bins:
            counts[at] = int32(0)
            at = uint32(at + uint32(threads))
        cuda.syncthreads()
        voxel = OFFSET(begin) + OFFSET(cuda.blockIdx.x) * OFFSET(threads) + OFFSET(t)
        while voxel < end:
            b = (image[voxel] - low) / width
            cuda.atomic.add(counts, uint32(int32(min(max(b, ZERO), float32(int32(bins) - int32(1))))), int32(1))
            voxel = voxel + OFFSET(cuda.gridDim.x) * OFFSET(threads)
        cuda.syncthreads()
        at = t
        while at < bins:
            if counts[at] > int32(0):
                cuda.atomic.add(totals, at, COUNTER(counts[at]))
            at = uint32(at + uint32(threads))

    return body


def count_intensities(shape: Shape, counts: Any, low: Any, width: Any, image: Any) -> None:
    """``intensity_histogram.cpu.intensity_histogram`` on the current device."""
    begin, end = offsets(box(shape))
    totals, blocks = counts.reshape(-1), (2 * multiprocessors(), 1, 1)
    if end > begin:
        intensity_histogram_shared((), blocks, (THREADS, 1, 1), begin, end, low, width, image.reshape(-1), totals)

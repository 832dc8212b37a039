"""Histogram of an image's intensities."""

from collections.abc import Callable

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ZERO = float32(0)


@formula
def increment(counts, i):
    """``counts[i] += 1``, for threads with counts of their own."""
    counts[i] += int64(1)


@increment.on_cuda
def _atomic_increment() -> Callable[..., None]:
    """``counts[i] += 1`` for all threads of a GPU."""
    from numba import cuda

    def increment_atomically(counts, i):
        cuda.atomic.add(counts, i, int64(1))

    return increment_atomically


@voxelwise(scatter=True, cooperative="intensity_histogram.cuda.count_intensities")
def intensity_histogram(z, y, x, counts, low, width, image):
    """``counts[b] += 1``, b = (I - low) / width, clamped to the bins.

    counts: (tiles, bins) int64;  low, width: float32, intensities;  image: (Z, Y, X) float32, finite
    """
    b = (image[z, y, x] - low) / width
    increment(counts, index(int32(min(max(b, ZERO), float32(int32(counts.shape[0]) - int32(1))))))

"""Memory between levels."""

import ctypes
import os
import sys

from daskreg.kernels.device import gpus

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # options of mallopt
LARGE = 1 << 20  # bytes
MOST_KEPT = 32 << 20  # bytes; what glibc raises its own threshold to, and the most that it takes
FIXED_BY = "MALLOC_TRIM_THRESHOLD_"  # once it is set, glibc does not adjust its thresholds


def trim() -> None:
    """Hand freed memory back to the system.

    glibc keeps freed arrays of up to 32 MB for the next of their size, CuPy all of them; a finer level asks for larger ones
    and cannot use them.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and gpus():  # without a driver its pool cannot even be asked
        cupy.get_default_memory_pool().free_all_blocks()
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim_heap is not None:
            trim_heap(0)


def return_large_arrays() -> None:
    """Have glibc hand every array of LARGE bytes back as soon as it is freed, from now on in this process.

    It otherwise raises that size up to 32 MB, and keeps what is freed below it: more than a sweep of slabs may take.
    """
    _set_option(MMAP_THRESHOLD, LARGE)


def reuse_freed_arrays() -> None:
    """Have glibc keep freed arrays of up to 32 MB for the next ones, as it does of itself, where the environment forbids it.

    Dask's nannies set MALLOC_TRIM_THRESHOLD_, after which glibc maps new pages for each chunk that is encoded or decoded: half a
    million page faults per GB, which take longer than the codec.
    """
    if FIXED_BY in os.environ:
        _set_option(MMAP_THRESHOLD, MOST_KEPT)
        _set_option(TRIM_THRESHOLD, 2 * MOST_KEPT)


def _set_option(option: int, value: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(option, value)

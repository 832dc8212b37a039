"""Memory between levels."""

import ctypes
import sys

from daskreg.kernels.device import gpus

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt
LARGE = 1 << 20  # bytes


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
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(MMAP_THRESHOLD, LARGE)

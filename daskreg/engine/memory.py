"""Memory between levels."""

import ctypes
import sys

from daskreg.kernels.device import gpus


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

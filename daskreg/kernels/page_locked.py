"""Page-locked memory, which a GPU reads and writes by itself, of any size in little time.

``cudaHostAlloc`` takes and clears pages one after the other in one thread: about a second a gigabyte. Here anonymous memory is
touched by all cores, in large pages where the system has some, and then registered with CUDA.
"""

from __future__ import annotations

import math
import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg import machine
from daskreg.large_pages import large_pages

PART = 128 << 20  # bytes touched by a thread at once
PORTABLE = 1  # cudaHostRegisterPortable: for every context of the process


def page_locked_zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An array that stays page-locked as long as any view of it lives. Raises MemoryError where the system has no more."""
    import cupy

    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    whole: NDArray[Any] = np.frombuffer(large_pages(size), np.uint8)
    parts = [whole[at : at + PART] for at in range(0, size, PART)]
    with ThreadPoolExecutor(max(1, min(len(parts), machine.cores().value)), "daskreg-touch") as pool:
        list(pool.map(_touch, parts))
    try:
        cupy.cuda.runtime.hostRegister(whole.ctypes.data, size, PORTABLE)  # at once: no copy may reach over two such areas
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"{size / 2**30:.1f} GiB could not be page-locked: {error}") from error
    weakref.finalize(whole, _unregister, whole.ctypes.data)
    result: NDArray[Any] = whole.view(dtype).reshape(shape)
    return result


def _touch(part: NDArray[np.uint8]) -> None:
    """Have the system give pages, which it clears: a byte of each is written."""
    part[:: mmap.PAGESIZE] = 0


def _unregister(address: int) -> None:
    import cupy

    with suppress(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.hostUnregister(address)

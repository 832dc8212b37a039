"""What the current GPU has, and launches that fill it."""

from __future__ import annotations

from functools import cache
from typing import Any

from daskreg.kernels.compiler.formula import DISABLED

OVERHEAD = 2  # what a block costs before it marches, in planes


def deep(planes: int, tiles: int, resident: int, reach: int = 0) -> int:
    """Planes that a block marches through, so that blocks fill the device evenly; nothing of it shows in a result.

    tiles: blocks a plane;  resident: blocks that a multiprocessor runs at once;  reach: planes read before and behind.
    """
    at_once = resident * multiprocessors()
    candidates = {-(-planes // n) for n in range(1, planes + 1) if planes / n >= 4 or n == 1} or {1}
    turns = {d: -(-tiles * -(-planes // d) // at_once) * (d + 2 * reach + OVERHEAD) for d in candidates}
    return min(candidates, key=lambda d: (turns[d], -d))


@cache
def multiprocessors() -> int:
    """Of the current device; 2 in the simulator and where there is none."""
    return _of_device("MultiProcessorCount", 2)


@cache
def block_memory() -> int:
    """Bytes of shared memory that a block may ask for on the current device; those of an H100 where there is none."""
    return _of_device("MaxSharedMemoryPerBlockOptin", 227 * 1024)


def _of_device(attribute: str, otherwise: int) -> int:
    """What the current device has; in the simulator, and where there is none, what is given."""
    try:
        import cupy

        return otherwise if DISABLED else int(cupy.cuda.Device().attributes[attribute])
    except Exception:  # noqa: BLE001  # as in ``device.gpus``: all mean that there is no device
        return otherwise


def stream() -> Any:
    """CuPy's current stream, as Numba knows it; the default one in the simulator and where there is no CuPy."""
    if DISABLED:
        return 0
    try:
        import cupy
    except ImportError:
        return 0
    from numba import cuda

    return cuda.external_stream(cupy.cuda.get_current_stream().ptr)

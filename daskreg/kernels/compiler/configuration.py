"""Launch configurations: threads per block and planes per block, on a GPU and in the CUDA simulator.

The simulator runs bodies as plain Python, with an operating system thread for every thread of a block. All differences are kept
in this package: ``block_size``, ``OFFSET``, ``COUNTER``, ``WARP_SHUFFLE`` and ``Formula.intrinsic``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import int64, uint64
from numba.core import config as settings

SIMULATED = bool(vars(settings)["DISABLE_JIT"])
OFFSET: Any = int if SIMULATED else uint64  # type of a voxel's offset in a field: a block may hold more than 2^31 voxels
COUNTER: Any = int if SIMULATED else int64  # type of a count that is added to a total
WARP_SHUFFLE = not SIMULATED  # whether the threads of a warp can read each other's registers
LAUNCH_OVERHEAD = 2  # planes that take as long as the start of a block


def block_size(threads: int, least: int = 4) -> int:
    """Threads of a block along an axis; in the simulator ``least``, the fewest that the kernel works with."""
    return least if SIMULATED else threads


def planes_per_block(planes: int, tiles: int, resident: int, reach: int = 0, processors: int = 0) -> int:
    """Planes along z that a block computes, so that blocks fill the device evenly; results do not depend on it.

    tiles: blocks per plane;  resident: blocks that a multiprocessor runs at once;  reach: planes read on each side;
    processors: multiprocessors, by default those of the current device.
    """
    at_once = resident * (processors or multiprocessors())
    candidates = {-(-planes // n) for n in range(1, planes + 1) if planes / n >= 4 or n == 1} or {1}
    turns = {d: -(-tiles * -(-planes // d) // at_once) * (d + 2 * reach + LAUNCH_OVERHEAD) for d in candidates}
    return min(candidates, key=lambda d: (turns[d], -d))


@cache
def multiprocessors() -> int:
    """Of the current device; 2 in the simulator and without a device."""
    return _of_device("MultiProcessorCount", 2)


@cache
def block_memory() -> int:
    """Most bytes of shared memory per block on the current device; those of an H100 without a device."""
    return _of_device("MaxSharedMemoryPerBlockOptin", 227 * 1024)


def copies_asynchronously() -> bool:
    """Whether the current device, or an H100 without one, copies to shared memory beside other instructions: from sm_80 on."""
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv.error import CudaSupportError

    try:
        device = vars(dispatcher)["get_current_device"]()  # or that for which ``offline`` compiles
    except CudaSupportError:
        return True
    return bool(device.compute_capability >= (8, 0))


def _of_device(attribute: str, otherwise: int) -> int:
    """An attribute of the current device; a default in the simulator and without a device."""
    try:
        import cupy

        return otherwise if SIMULATED else int(cupy.cuda.Device().attributes[attribute])
    except Exception:  # noqa: BLE001  # as in ``device.gpus``: there is no device
        return otherwise


def stream() -> Any:
    """CuPy's current stream for Numba; the default stream in the simulator and without CuPy."""
    if SIMULATED:
        return 0
    try:
        import cupy
    except ImportError:
        return 0
    from numba import cuda

    return cuda.external_stream(cupy.cuda.get_current_stream().ptr)

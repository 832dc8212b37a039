"""The device of a rank's arrays: the CPU or a GPU."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError
from daskreg.kernels.compiler import cupy_kernels
from daskreg.kernels.compiler.launch import on_device

_PEAKS: dict[int, int] = {}
Kind = Literal["cpu", "cuda"]
NO_MASK: NDArray[np.float32] = np.empty((0, 0, 0), np.float32)  # means a mask that is 1 everywhere


@dataclass(frozen=True)
class Device:
    """Creates arrays on a device. ``number``: of the GPU, among those visible to this process."""

    kind: Kind = "cpu"
    number: int = 0

    @property
    def xp(self) -> Any:
        """NumPy or CuPy."""
        return np if self.kind == "cpu" else _cupy()

    def put(self, array: Any) -> Any:
        """Copy a host array to the device; an array that is there already is returned unchanged."""
        return self.xp.asarray(array)

    @property
    def no_mask(self) -> Any:
        """An empty mask."""
        return NO_MASK if self.kind == "cpu" else self.xp.empty((0, 0, 0), np.float32)

    def use(self) -> None:
        """Make it the current device of this thread. Raises ConfigError if there is no such GPU or CuPy is not installed."""
        if self.kind == "cuda":
            _select(self.number)

    @property
    def memory(self) -> int:
        """Free bytes of a GPU, including what CuPy's pool holds for reuse."""
        cupy = _cupy()
        with cupy.cuda.Device(self.number):
            return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def record_peak(self) -> int:
        """Record how many bytes CuPy holds on a GPU; returns the maximum recorded so far, 0 on a CPU."""
        if self.kind == "cuda":
            _PEAKS[self.number] = max(_PEAKS.get(self.number, 0), int(_cupy().get_default_memory_pool().total_bytes()))
        return _PEAKS.get(self.number, 0) if self.kind == "cuda" else 0

    @property
    def name(self) -> str:
        """Human-readable name."""
        return "CPU" if self.kind == "cpu" else str(_cupy().cuda.runtime.getDeviceProperties(self.number)["name"].decode())


CPU = Device()


def gpus() -> int:
    """Number of usable GPUs; 0 without CuPy, numba-cuda or a driver."""
    if find_spec("numba_cuda") is None:
        return 0
    try:
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())
    except Exception:  # noqa: BLE001  # CuPy without its libraries, an old driver, no device
        return 0


def gpu_memory() -> int:
    """Free bytes of the first visible GPU."""
    return Device("cuda").memory


def gpu_identity() -> str:
    """Identifies the first visible GPU: processes with equal answers share one."""
    bus, seen = _cupy().cuda.Device(0).pci_bus_id, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"{socket.gethostname()} {bus} {seen.partition(',')[0]}"  # MIG instances of one GPU differ in the last part


def host(array: Any) -> NDArray[Any]:
    """A copy in host memory, or the array itself if it is there."""
    if (
        on_device(array) and array.ndim == 4 and not array.flags.c_contiguous
    ):  # a contiguous copy on the GPU would take another field
        whole = np.empty(array.shape, array.dtype)
        for component, part in zip(whole, array, strict=True):
            component[...] = part.get()
        return whole
    found: NDArray[Any] = array.get() if on_device(array) else array
    return found


def page_locked(array: Any) -> NDArray[Any]:
    """A copy of a GPU array in page-locked host memory, ten times as fast; CuPy reuses the memory for the next such array."""
    import cupyx

    found: NDArray[Any] = cupyx.empty_pinned(array.shape, array.dtype)
    module_of(array).ascontiguousarray(array).get(out=found)
    return found


def module_of(array: Any) -> Any:
    """NumPy or CuPy, by the array's type."""
    return _cupy() if on_device(array) else np


def scipy_of(array: Any) -> Any:
    """SciPy or ``cupyx.scipy``, with ``fft`` and ``ndimage``, by the array's type."""
    name = "cupyx.scipy" if on_device(array) else "scipy"
    for part in ("fft", "ndimage"):
        import_module(f"{name}.{part}")
    return import_module(name)


def synchronise(array: Any) -> None:
    """Wait until the work queued on an array's device is done."""
    if on_device(array):
        _cupy().cuda.get_current_stream().synchronize()


def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise ConfigError(
            "a GPU was requested and CuPy is not installed; pip install 'daskreg[cuda13]' (or cuda12), or use --device cpu."
        ) from None
    return cupy


def _select(number: int) -> None:
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ConfigError(
            f"a GPU was requested and CUDA finds none ({error}); look at nvidia-smi, or use --device cpu."
        ) from None
    if number >= count:
        raise ConfigError(f"GPU {number} was requested and this process sees {count}; look at CUDA_VISIBLE_DEVICES.")
    from numba import cuda

    cupy_kernels.restore()
    cupy.cuda.Device(number).use()
    cuda.select_device(number)

"""Run a kernel outside a registration: on this machine's processor, or on the current CUDA device, one at a time there."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg import machine
from daskreg.errors import InputError

if TYPE_CHECKING:
    from daskreg.kernels.compiler.launch import Kernel

_LAUNCH_LOCK = Lock()  # one block at a time: its arrays are copied to the device's memory
KernelRunner = Callable[..., Any]


def run_on_cpu(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any) -> Any:
    """Run a kernel on this machine's processor."""
    machine.end_soon_as_worker()
    return kernel(shape, *arguments)


def run_on_cuda(kernel: Kernel, shape: tuple[int, int, int], *arguments: Any) -> Any:
    """Run a kernel on the current CUDA device: arrays are copied there, the last one is copied back.

    Raises InputError where Numba finds no device.
    """
    from numba import cuda

    from daskreg.kernels.compiler.configuration import SIMULATED

    if not SIMULATED and not cuda.is_available():
        raise InputError(
            "a GPU was asked for and this process sees none that Numba can use; pip install 'daskreg[cuda13]' (or cuda12), look "
            'at nvidia-smi, or use device="cpu".'
        )
    machine.end_soon_as_worker()
    with _LAUNCH_LOCK:
        copies = [cuda.to_device(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in arguments]
        rows = kernel.on_cuda(shape, *copies)
        if rows is not None:
            return rows.copy_to_host()
        copies[-1].copy_to_host(arguments[-1])
    return None

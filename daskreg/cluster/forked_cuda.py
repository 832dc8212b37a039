"""Imported by the fork server of workers with a GPU. Nothing here may use one: forked processes could not use it any more."""

import ctypes
import os
from contextlib import suppress
from importlib import import_module

MODULES = "cupy", "numba.cuda", "dask_cuda"


def initialised() -> bool:
    """Whether this process has initialised CUDA's driver, without which it answers nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return not driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))


for name in MODULES:
    with suppress(Exception):  # without a driver or a library; workers say so
        import_module(name)
if initialised():
    os._exit(1)  # workers are started afresh

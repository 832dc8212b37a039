"""Imported by the fork server of workers with a GPU. Nothing here may use one: forked processes could not use it any more."""

from contextlib import suppress
from importlib import import_module

MODULES = "cupy", "numba.cuda", "dask_cuda"

for name in MODULES:
    with suppress(Exception):  # without a driver or a library; workers say so
        import_module(name)

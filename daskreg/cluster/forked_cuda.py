"""Imported by the fork server of workers with a GPU. Nothing here may use one: forked processes could not use it any more."""

import gc
import os
from contextlib import suppress
from importlib import import_module

from daskreg.cluster.gpu_driver import initialised

MODULES = "cupy", "numba.cuda", "dask_cuda"

for name in MODULES:
    with suppress(Exception):  # without a driver or a library; workers say so
        import_module(name)
if initialised():
    os._exit(1)  # workers are started afresh
gc.freeze()  # what is collected is copied

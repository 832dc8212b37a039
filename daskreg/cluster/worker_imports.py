"""Imported by a fork server: what workers import and prepare, so that all that are forked from it have it at once.

Without it each of them takes half a second of a core for Dask's arrays, Zarr, and what Numba knows of types and functions.
"""

import gc
from contextlib import suppress
from importlib import import_module

from numba.core.registry import cpu_target

MODULES = (
    "distributed.nanny",
    "distributed.comm.tcp",
    "dask.array",
    "zarr",  # not daskreg.storage.zarr.codecs, whose threads no process has that is forked
    "daskreg.cluster",
    "daskreg.cluster.preload",
    "daskreg.comm.tcp",
    "daskreg.comm.ucx",
    "daskreg.__main__",
)

for name in MODULES:
    with suppress(ImportError):
        import_module(name)
import_module("daskreg.kernels.compiler.registry").import_kernels()
cpu_target.typing_context.refresh()  # which its first kernel would do, loaded or compiled
cpu_target.target_context.refresh()
gc.freeze()  # what is collected is copied

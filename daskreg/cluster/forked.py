"""Imported by the fork server: what workers import, so that it is there when they are forked. It ends with its parent."""

import gc
from contextlib import suppress
from importlib import import_module

from daskreg import machine

machine.end_with_parent()

MODULES = (
    "distributed.nanny",
    "distributed.comm.tcp",
    "daskreg.cluster",
    "daskreg.cluster.preload",
    "daskreg.comm.ucx",
    "daskreg.__main__",
)

for name in MODULES:
    with suppress(ImportError):
        import_module(name)
gc.freeze()  # what is collected is copied

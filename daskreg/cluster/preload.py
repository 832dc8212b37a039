"""Preloaded by worker processes of an embedded cluster: they exit without tearing Python down.

Finalising an interpreter with NumPy, Numba and LLVM takes half a second of a core. With several workers on busy cores that grows
to seconds, and after four of them their nanny kills them, with a warning.
"""

import atexit
import logging
import os
import sys
from typing import Any

from daskreg import machine
from daskreg.cluster.logs import log_to_file

MODULE = __name__  # what Dask preloads


def dask_setup(worker: Any) -> None:
    """Write Dask's messages to a file, and register the exit; called by Dask in the new process.

    Dask's own thread, which waits for the end of the driver, cannot run while other code holds Python's lock.
    """
    log_to_file()
    machine.end_with_parent()
    atexit.register(_exit)


def _exit() -> None:
    """Exit at once: the worker is closed by now, and the operating system frees memory faster."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Loaded by worker processes of our own: when they are told to end, they do.

Python takes half a second of a core to take NumPy, Numba and LLVM apart. With several workers on busy cores that grows to
seconds, and after four of them their nanny kills them, with a warning.
"""

import atexit
import logging
import os
import sys
from typing import Any

NAME = __name__  # what Dask preloads


def dask_setup(worker: Any) -> None:
    """Called by Dask in the new process."""
    atexit.register(_leave)


def _leave() -> None:
    """The worker has closed by now; what is left is memory, which the system takes back faster."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

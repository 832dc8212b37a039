"""Memory of a worker's process apart from the images and fields: measured where a rank starts, estimated before a run.

Measured on x86-64 Linux (Python 3.11, NumPy 2.4, Dask 2026.8), with compiled kernels in the cache: a client that has imported
daskreg has 207 MiB in RAM, a rank that is about to read its images 299 (346 beside a scheduler), and at its peak at most 38 MiB
more than that and the projected arrays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import numpy as np
from distributed import Client

from daskreg import machine
from daskreg.cluster.worker_calls import ask_some
from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine.images import normalise
from daskreg.kernels.device import Kind

GPU_BYTES = 370 << 20  # of a GPU's memory: modules of compiled kernels, streams, what the memory pool rounds up
RUN_SHARE = 5  # kernels, thread stacks and the allocator take at most a fifth of what a rank's process had at its start
IMPORT_SHARE = 0.75  # of what imports take: all that, a cluster in this process and the compiler's library take at most
DATA_BYTES = 512 << 20  # a process with more than this in RAM holds data of its caller, which a worker's process does not


def start_bytes() -> int:
    """Memory of this process as a rank starts: everything is imported, and compiled kernels can be loaded."""
    normalise(np.arange(8, dtype=np.float32).reshape(2, 2, 2), Config(stages=(Deformable(),)), SingleRank(), "a warm-up")
    return machine.resident_bytes()


def running_bytes(start: int) -> int:
    """Most memory that a rank's process takes without arrays, from what it had at its start."""
    return start + min(start, DATA_BYTES) // RUN_SHARE


def estimated_bytes(client: Client | None, workers: int, device: Kind = "cpu", *, elsewhere: bool = False) -> int:
    """Most memory that a worker takes without arrays, known before a run.

    Measured on the workers of a client; without one estimated from the size of this process, in which a single worker will be
    unless it is ``elsewhere``, as a job is. Raises RunError where a worker does not answer, or none is left.
    """
    if device == "cuda":
        return GPU_BYTES
    if client is not None:
        return running_bytes(max(ask_some(client, start_bytes, "how much memory its process takes").values()))
    resident = machine.resident_bytes()
    imported = _in_new_process() if (elsewhere or workers > 1) and resident > DATA_BYTES else resident
    return imported + int(min(imported, DATA_BYTES) * IMPORT_SHARE)


@cache
def _in_new_process() -> int:
    """Memory of a process that has imported what a rank needs, and nothing else."""
    program = f"import {__name__}; print({machine.__name__}.resident_bytes())"
    # -P: not from the working directory, where somebody else may have put a module, unless this process imports from there too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-c", program]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

"""Sums over planes and ranks, in an order that does not depend on the partition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.grid import Partition
from daskreg.kernels.device import host


def add_up(part: NDArray[np.generic], comm: Communicator, partition: Partition) -> NDArray[np.generic]:
    """A similarity's parts over all ranks: integer counts as they are, float32 rows (k, planes, Y) by plane, then over planes."""
    part = host(part)
    if np.issubdtype(part.dtype, np.integer):
        return comm.sum_counts(part.astype(np.int64, copy=False))
    rows = np.ascontiguousarray(part, np.float64)  # a sum that converts on the fly groups a row by its buffer
    return comm.sum_planes(rows.sum(axis=2), partition.lengths)


def add_up_slabs(parts: list[NDArray[np.generic]], comm: Communicator, partition: Partition) -> NDArray[np.generic]:
    """``add_up`` of the parts of slabs, in the order of their planes; at least one."""
    if np.issubdtype(parts[0].dtype, np.integer):
        return comm.sum_counts(np.sum(parts, axis=0, dtype=np.int64))
    rows = [np.ascontiguousarray(part, np.float64).sum(axis=2) for part in parts]
    return comm.sum_planes(np.concatenate(rows, axis=1), partition.lengths)

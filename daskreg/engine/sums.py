"""Sums over planes and ranks, in an order that no partition shows in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.grid import Partition
from daskreg.kernels.device import host
from daskreg.similarity import Similarity


def add_up(part: NDArray[np.generic], similarity: Similarity, comm: Communicator, partition: Partition) -> NDArray[np.generic]:
    """A similarity's parts, summed over all planes of the global grid."""
    part = host(part)
    if similarity.counts or np.issubdtype(part.dtype, np.integer):
        return comm.sum_counts(part.astype(np.int64, copy=False))
    rows = np.ascontiguousarray(part, np.float64)  # first: a sum that converts as it goes groups a row by where a buffer ends
    return comm.sum_planes(rows.sum(axis=2), partition.lengths)

"""Work that the ranks of a run share out item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator


class SharedOut:
    """Items of a sequence, each of which one rank computes, in turn; the results, in order, on every rank."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm

    def mine(self, items: Sequence[Any]) -> Sequence[Any]:
        """Those of this rank."""
        return items[self.comm.rank :: self.comm.size]

    def results(self, own: Sequence[NDArray[np.float64]], total: int, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
        """Arrays of one shape, those of all items from those of this rank's."""
        most = -(-total // self.comm.size)
        sent = np.zeros((most, *shape))
        for k, array in enumerate(own):
            sent[k] = array
        everywhere = self.comm.gather(sent)
        return [everywhere[k % self.comm.size, k // self.comm.size] for k in range(total)]

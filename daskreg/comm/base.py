"""How ranks meet: what the loop needs of the others, and the trivial case of being alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class Communicator(ABC):
    """The ranks of one run; every sum has an order that does not depend on how many there are."""

    rank: int
    size: int

    @abstractmethod
    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum integers over the ranks, exactly."""

    @abstractmethod
    def sum_planes(self, planes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over all planes of the global grid, in their order: (k, planes of this rank) -> (k,)."""

    @abstractmethod
    def max(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Element-wise maximum over the ranks."""


class Alone(Communicator):
    """A run of one rank: the same loop, nobody to wait for."""

    rank, size = 0, 1

    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The counts themselves."""
        return counts

    def sum_planes(self, planes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Their sum."""
        return np.asarray(planes.sum(axis=1))

    def max(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values themselves."""
        return values

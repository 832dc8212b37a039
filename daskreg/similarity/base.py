"""What every similarity states: its value, its gradient with respect to ``moved``, its reach, and what ranks sum up."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.weights import COUNT

Volume = NDArray[np.float32]


class Similarity(ABC):
    """A loss between fixed and moved, both scaled to [0, 1], in two steps with a sum over the ranks between them.

    Both work on the planes of ``box``; the arrays hold ``reach`` more around them, as far as the grid goes. ``partial`` returns
    what is summed (rows (k, planes, Y) of float32 terms; integer counts where ``counts`` is true, and on a GPU) and may leave
    intermediates in ``fields`` (3, Z, Y, X); ``finish`` turns ``moved``, in place, into N dC/dmoved, N the sum of weights.
    """

    reach: int = 0  # voxels around x that the value at x reads
    counts: bool = False
    origin: int = 0  # plane of the grid that the arrays begin with
    steep: float  # usual length of N dC/du where images scaled to [0, 1] disagree: what an optimiser calls a clear gradient

    @abstractmethod
    def partial(self, box: Shape, fixed: Volume, weight: Volume, moved: Volume, fields: Volume) -> NDArray[np.generic]:
        """This rank's part of the sums; ``moved`` is NaN out of domain, ``weight`` a mask or NOWHERE."""

    @abstractmethod
    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Loss and N from the sums over all ranks."""

    @abstractmethod
    def finish(
        self, box: Shape, total: NDArray[np.generic], fixed: Volume, weight: Volume, moved: Volume, fields: Volume
    ) -> None:
        """Replace ``moved`` by N dC/dmoved."""

    @staticmethod
    def ratio(total: NDArray[np.generic]) -> tuple[float, float]:
        """First over second sum, and the second, whether they are sums or counted in units."""
        unit = COUNT if np.issubdtype(total.dtype, np.integer) else 1
        return float(total[0]) / max(float(total[1]), 1e-30), float(total[1]) / unit

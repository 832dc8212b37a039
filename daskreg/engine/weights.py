"""The weight of each fixed voxel: its own mask times the moving one where it lands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.sample import weigh, weigh_affine
from daskreg.similarity import NOWHERE

Array = NDArray[np.float32]


class Weights:
    """Masks of a level; no array where there is no mask, none of its own where only the fixed image has one."""

    def __init__(self, fixed: Array | None, moving: Array | None, shape: tuple[int, int, int]) -> None:
        self.fixed = NOWHERE if fixed is None else fixed
        self.moving = moving
        self._weight = self.fixed if moving is None else np.empty(shape, np.float32)

    def at(self, place: tuple[Any, ...], u: Array) -> Array:
        """Weights at A x + t + S u."""
        if self.moving is not None:
            weigh(self._weight.shape, *place, u, self.fixed, self.moving, self._weight)
        return self._weight

    def at_affine(self, place: tuple[Any, ...]) -> Array:
        """Weights at A x + t."""
        if self.moving is not None:
            weigh_affine(self._weight.shape, *place, self.fixed, self.moving, self._weight)
        return self._weight

"""The weight of each fixed voxel: its own mask times the moving one where it lands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.halo import Block

Array = NDArray[np.float32]


class Weights:
    """Masks of a level; no array where there is no mask, none of its own where only the fixed image has one."""

    def __init__(self, fixed: Array | None, moving: bool, block: Block) -> None:
        self.fixed, self.block = fixed, block
        self.seen = block.scalar() if moving else None  # what the sampler writes: the moving mask at p

    @property
    def array(self) -> Array:
        """The weights: fixed mask times moving mask; empty for 1 everywhere."""
        if self.seen is not None:
            return self.seen
        return self.block.device.nowhere if self.fixed is None else self.fixed

    def combine(self) -> None:
        """After a look: times the fixed mask."""
        if self.seen is not None and self.fixed is not None:
            self.seen[self.block.inner] *= self.fixed[self.block.inner]

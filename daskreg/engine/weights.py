"""The weight of each fixed voxel: its own mask times the moving one where it is mapped to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.halo import Block

Array = NDArray[np.float32]


class Weights:
    """Masks of a level; no array where there is no mask, none of its own where only the fixed image has one.

    moving: (Z, Y, X), filled by the sampler: the moving mask at p(x); None where the moving image has no mask.
    """

    def __init__(self, fixed: Array | None, masked: bool, block: Block) -> None:
        self.fixed, self.block = fixed, block
        self.moving = block.scalar() if masked else None

    @property
    def array(self) -> Array:
        """Fixed mask times moving mask; empty for 1 everywhere."""
        if self.moving is not None:
            return self.moving
        return self.block.device.no_mask if self.fixed is None else self.fixed

    def combine(self) -> None:
        """After sampling: multiply by the fixed mask."""
        if self.moving is not None and self.fixed is not None:
            self.moving[self.block.inner] *= self.fixed[self.block.inner]

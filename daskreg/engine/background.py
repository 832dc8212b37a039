"""Stored background: voxels of one value, or NaN, that stand for nothing: the filling of a mosaic, of a scanner's bore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.edge_images import grown
from daskreg.errors import VoxelError
from daskreg.kernels.device import module_of

MARGIN = 3  # planes around a block that its constant areas, and what is beside them, depend on
SLAB = 32  # planes looked at together


@dataclass(frozen=True)
class Background:
    """Which voxels of an image are background.

    value: theirs, NaN for those that are NaN;  areas: only those in a cube of 3 x 3 x 3 such voxels around a voxel of the
    image (beyond its faces all count), not every voxel of that value.

    Voxels beside such a cube are background too, unless the value is NaN: a resampling has mixed them with it, which is an edge
    that no object has.
    """

    value: float
    areas: bool = False

    @property
    def margin(self) -> int:
        """Planes around a block that ``known`` has to see to be right within it."""
        return MARGIN if self.areas or not math.isnan(self.value) else 0

    def known(self, voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each voxel (Z, Y, X), as stored, is none of the background."""
        same = module_of(voxels).isnan(voxels) if math.isnan(self.value) else voxels == np.float32(self.value)
        areas = _opened(same)
        if not math.isnan(self.value):
            areas = grown(areas)
        background: NDArray[np.bool_] = areas if self.areas else areas | same
        return ~background


def _opened(same: Any) -> Any:
    """Morphological opening by a cube of 3 voxels; for the erosion, voxels outside of the array count as set."""
    return grown(~grown(~same))


def leave_out(voxels: NDArray[np.float32], known: Any, own: slice, comm: Communicator, name: str) -> int:
    """Give background voxels the least value of the others, in place; how many of the own planes' voxels they are.

    Raises VoxelError where no other voxel is left on any rank.
    """
    xp = module_of(voxels)
    least = min((least_known(voxels[z], known[z]) for z in _slabs(voxels[own], own.start or 0)), default=math.inf)
    least = require_known(least, comm, name)
    for z in _slabs(voxels):
        voxels[z] = xp.where(known[z], voxels[z], np.float32(least))
    return int(known[own].size - known[own].sum())


def require_known(least: float, comm: Communicator, name: str) -> float:
    """The least value over all ranks. Raises VoxelError where there is none."""
    found = -float(comm.max(np.array([-least]))[0])
    if math.isinf(found):
        raise VoxelError(f"{name} is background everywhere; choose another value for the background, or none.")
    return found


def _slabs(voxels: Any, first: int = 0) -> list[slice]:
    return [slice(first + z, first + min(z + SLAB, len(voxels))) for z in range(0, len(voxels), SLAB)]


def least_known(voxels: Any, known: Any) -> float:
    """Least value of the voxels that are none of the background; infinite ones and NaN, which are refused later, do not count."""
    xp = module_of(voxels)
    return float(xp.where(known & xp.isfinite(voxels), voxels, np.float32(math.inf)).min())

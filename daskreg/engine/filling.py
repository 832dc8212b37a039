"""Areas of images that stand for nothing, as a search over rotations has found them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.edge_images import grown
from daskreg.engine.report import LevelReport
from daskreg.grid import Grid, Region
from daskreg.kernels.device import module_of

Array = NDArray[np.float32]
SLAB = 32  # planes looked at together
VALUES, BOXES = "filling", "kept"  # names in reports
SAME = np.float32(2e-6)  # of the intensity range: means of equal values differ by rounding


@dataclass(frozen=True)
class Filling:
    """The values of areas that stand for nothing in the fixed and in the moving image, as they are compared; None without any.

    boxes: of each image, the voxels around all others; None for the whole image
    """

    fixed: float | None = None
    moving: float | None = None
    boxes: tuple[Region | None, Region | None] = (None, None)

    def leave_out(self, fixed: Array, moved: Array) -> None:
        """Take voxels of these values out of the domain: NaN in ``moved``."""
        for value, array in ((self.fixed, fixed), (self.moving, moved)):
            if value is not None:
                for z in range(0, len(moved), SLAB):
                    moved[z : z + SLAB][holds(array[z : z + SLAB], value)] = np.nan

    def kept(self, fixed: Grid, moving: Grid) -> tuple[Grid, Grid]:
        """The parts of both images that are around what is no filling."""
        a, b = (grid if box is None else grid.crop(box) for grid, box in zip((fixed, moving), self.boxes, strict=True))
        return a, b

    @classmethod
    def of_reports(cls, reports: Iterable[LevelReport]) -> Filling:
        """What the last search left out, from its report, which checkpoints keep."""
        return cls.of_details([report.detail for report in reports])

    @classmethod
    def of_details(cls, details: Sequence[Mapping[str, Any]]) -> Filling:
        """As ``of_reports``, from what the reports have in detail."""
        found = next((detail for detail in reversed(details) if VALUES in detail), None)
        if found is None:
            return NO_FILLING
        (fixed, moving), boxes = found[VALUES], found.get(BOXES, (None, None))
        a, b = (None if box is None else Region.of(*box) for box in boxes)
        return cls(fixed, moving, (a, b))

    def report(self) -> dict[str, Any]:
        """Plain values, for a search's report."""
        return {VALUES: [self.fixed, self.moving], BOXES: [None if b is None else [b.start, b.stop] for b in self.boxes]}


NO_FILLING = Filling()


def holds(voxels: Any, value: float | None) -> Any:
    """Which voxels have a value."""
    assert value is not None
    return abs(voxels - np.float32(value)) <= SAME


def leave_out_beside(outside: Array, own: slice) -> None:
    """NaN in own planes where any of the 27 voxels around is; some planes at a time."""
    left_out = module_of(outside).isnan(outside)
    for z in range(own.start, own.stop, SLAB):
        first, stop = max(z - 1, 0), min(z + SLAB, own.stop)
        region = grown(left_out[first : stop + 1])[z - first : stop - first]
        outside[z:stop][region] = np.nan

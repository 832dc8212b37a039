"""The displacement at full resolution of a run that stopped at a coarse level: upsampled where it is read, never held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block, gather_planes
from daskreg.engine.plane_sums import BlockSums
from daskreg.engine.planes import ArrayPlanes, Planes, copy, on
from daskreg.engine.state import between_planes
from daskreg.grid import Index, Region, Span
from daskreg.kernels.composition.cpu import upsample
from daskreg.planning.source import Boxes

Array = NDArray[np.float32]
AROUND = 64  # planes around its own that a rank can be asked for: it writes whole chunks


@dataclass
class UpsampledField:
    """``Planes`` of u, voxels of the fixed image, that are read only.

    near: u of the coarse level, all planes that this rank needs;  planes: of the coarse level;  factors: of the coarse level;
    boxes: of the fixed image
    """

    near: ArrayPlanes
    planes: int
    factors: Index
    boxes: Boxes

    @classmethod
    def of(cls, u: Planes, coarse: Block, factors: Index, whole: Block, comm: Communicator, boxes: Boxes) -> UpsampledField:
        """From the coarse level's own planes of each rank."""
        every = whole.partition.whole
        wanted = [between_planes(s.grow(AROUND) & every, 1, factors[0], coarse.shape[0]) for s in whole.partition.slabs]
        mine, first = on(coarse.device, u, coarse.own), coarse.own.start
        if comm.size > 1:
            mine = gather_planes(comm, coarse.partition.slabs, wanted, mine, first, "levels")
            first = wanted[comm.rank].start
        return cls(ArrayPlanes(mine, first), coarse.shape[0], factors, boxes)

    @property
    def shape(self) -> Index:
        """Of the fixed image."""
        return self.boxes.shape

    def __post_init__(self) -> None:
        self.span, self.plane = Span(0, self.shape[0]), self.shape[1:]
        self.lead, self.dtype = 3, np.dtype(np.float32)

    def box(self, region: Region) -> Array:
        """(3, Z, Y, X) in a box."""
        (_, y, x), (_, y_stop, x_stop) = region.start, region.stop
        planes = Span(region.start[0], region.stop[0])
        read = between_planes(planes, 1, self.factors[0], self.planes)
        rows, columns = (_coarse(a, b, f) for a, b, f in zip((y, x), (y_stop, x_stop), self.factors[1:], strict=True))
        source = np.ascontiguousarray(self.near.array[:, read.within(self.near.span), rows, columns])
        top, left = rows.start * self.factors[1], columns.start * self.factors[2]
        finer = np.empty((3, len(planes), y_stop - top, x_stop - left), np.float32)
        steps = np.ones(3, np.int32), np.asarray(self.factors, np.int32)
        upsample(finer.shape[1:], planes.start, read.start, self.planes, *steps, steps[1].astype(np.float32), source, finer)
        return np.ascontiguousarray(finer[:, :, y - top :, x - left :])

    def block_sums(self, own: Span, factors: Index) -> list[Array]:
        """``BlockSums`` of each component, of a rank's own planes."""
        sums = [BlockSums(own, self.plane, factors) for _ in range(3)]
        for region in self.boxes.over(own):
            for one, component in zip(sums, self.box(region), strict=True):
                one.add(region, component)
        return [one.sums for one in sums]

    def read(self, planes: Span, into: Any) -> None:
        """See ``Planes``."""
        copy(self.box(Region((planes.start, 0, 0), (planes.stop, *self.plane))), into)

    def write(self, planes: Span, source: Any) -> None:
        """Never: it is computed."""
        raise TypeError("a displacement that is upsampled where it is read cannot be written")


def _coarse(start: int, stop: int, factor: int) -> slice:
    """The coarse voxels that fine ones lie between, and one before: the first fine ones of a crop see its face."""
    return slice(max(start // factor - 1, 0), (stop - 1) // factor + 2)

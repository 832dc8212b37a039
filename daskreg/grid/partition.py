"""Which rank owns which planes: slabs of a grid of nearly equal thickness, one for each rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from daskreg.grid.grid import Grid
from daskreg.grid.region import Index

MINIMUM_PLANES = 8  # of a slab: a thinner one costs more in halos than it saves in work


@dataclass(frozen=True)
class Span:
    """The planes ``start <= z < stop``; empty where stop is not after start."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __and__(self, other: Span) -> Span:
        """The planes in both."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def grow(self, halo: int) -> Span:
        """Extended by ``halo`` planes at both ends; an empty span stays empty."""
        return Span(self.start - halo, self.stop + halo) if len(self) else self

    def within(self, outer: Span) -> slice:
        """For indexing the planes of an array that holds ``outer``."""
        return slice(self.start - outer.start, self.stop - outer.start)


@dataclass(frozen=True)
class Partition:
    """Planes of a grid cut into one slab for each rank, equal to within a plane; ranks without planes are idle."""

    planes: int
    slabs: tuple[Span, ...]

    @classmethod
    def of(cls, planes: int, ranks: int, minimum: int = MINIMUM_PLANES) -> Partition:
        """``ranks`` slabs, some of them empty where slabs would have fewer than ``minimum`` planes."""
        working = max(1, min(ranks, planes // max(1, minimum)))
        cuts = [planes * k // working for k in range(working + 1)] + [planes] * (ranks - working)
        return cls(planes, tuple(Span(a, b) for a, b in pairwise(cuts)))

    def __getitem__(self, rank: int) -> Span:
        """The planes a rank owns."""
        return self.slabs[rank]

    @property
    def whole(self) -> Span:
        """All planes."""
        return Span(0, self.planes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Planes of each rank."""
        return tuple(len(s) for s in self.slabs)

    def around(self, rank: int, halo: int) -> Span:
        """A rank's planes and ``halo`` more at both ends, clipped to the grid."""
        return self.slabs[rank].grow(halo) & self.whole


def cut_orders(fixed: Grid, moving: Grid) -> tuple[Index, Index]:
    """Axis orders of both images, the axis to cut first: as stored, unless a fixed axis is more than twice as long as z.

    The first axis of the moving image is the one closest to the fixed image's. The orders follow from the grids alone, and so
    do not depend on the number of ranks.
    """
    longest = max(range(3), key=lambda a: (fixed.shape[a], -a))
    first = longest if fixed.shape[longest] > 2 * fixed.shape[0] else 0
    along = np.abs(np.asarray(fixed.direction)[:, first] @ np.asarray(moving.direction))
    other = int(np.argmax(along)) if along.max() > along[first] + 1e-6 else first
    return _leading(first), _leading(other)


def _leading(axis: int) -> Index:
    first, second, third = axis, *(a for a in range(3) if a != axis)
    return first, second, third

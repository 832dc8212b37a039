"""Who has which planes: near-equal slabs of a grid, one a rank."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from daskreg.grid.grid import Grid
from daskreg.grid.region import Index

MINIMUM_PLANES = 8  # a slab thinner than this costs more in halos than it saves in work


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
        """Longer by ``halo`` planes at both ends; an empty span stays empty."""
        return Span(self.start - halo, self.stop + halo) if len(self) else self

    def within(self, outer: Span) -> slice:
        """For indexing the planes of an array that holds ``outer``."""
        return slice(self.start - outer.start, self.stop - outer.start)


@dataclass(frozen=True)
class Partition:
    """Planes of a grid cut into one slab a rank, no two differ by more than a plane; ranks without planes are idle."""

    planes: int
    slabs: tuple[Span, ...]

    @classmethod
    def of(cls, planes: int, ranks: int, fewest: int = MINIMUM_PLANES) -> Partition:
        """``ranks`` slabs; fewer work where slabs would have less than ``fewest`` planes."""
        working = max(1, min(ranks, planes // max(1, fewest)))
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
        """A rank's planes and ``halo`` more at both ends, as far as the grid goes."""
        return self.slabs[rank].grow(halo) & self.whole


def cut_orders(fixed: Grid, moving: Grid) -> tuple[Index, Index]:
    """Axes of both images, the one to cut along first: as stored, unless a fixed one is more than twice as long as z.

    The moving image follows: first comes its axis that lies along the fixed one's. Follows from the grids alone, so that the
    number of ranks shows nowhere.
    """
    longest = max(range(3), key=lambda a: (fixed.shape[a], -a))
    first = longest if fixed.shape[longest] > 2 * fixed.shape[0] else 0
    along = np.abs(np.asarray(fixed.direction)[:, first] @ np.asarray(moving.direction))
    other = int(np.argmax(along)) if along.max() > along[first] + 1e-6 else first
    return _leading(first), _leading(other)


def _leading(axis: int) -> Index:
    first, second, third = axis, *(a for a in range(3) if a != axis)
    return first, second, third

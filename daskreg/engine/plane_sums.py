"""Sums over planes that come in bands of rows, with the bits that NumPy's sum of a whole plane has.

NumPy adds up a row of numbers by halves, and those by halves, down to blocks; a plane is split where NumPy splits it, into leaves
that are summed as soon as they are there. Sums over rows are added row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Index, Region, Span
from daskreg.kernels.moment_sums import MOMENTS, moments_of_rows
from daskreg.planning.source import LEAF

Array = NDArray[np.float32]


@dataclass
class _Waiting:
    """Of a plane: leaves that are done, sums that are to be added to others, and voxels of a leaf that is not complete."""

    leaf: int = 0
    sums: list[NDArray[np.float64]] = field(default_factory=list)
    rest: tuple[Array, Array] = (np.empty(0, np.float32), np.empty(0, np.float32))


class PlaneMoments:
    """Sums (6, own planes) that a correlation is made of, as ``measure.moments`` gives them for whole planes."""

    def __init__(self, own: Span, voxels: int) -> None:
        self.own, self.leaves = own, list(_leaves(voxels))
        self.sums = np.zeros((MOMENTS, len(own)))
        self._waiting = dict[int, _Waiting]()

    def add(self, region: Region, fixed: Array, moved: Array) -> None:
        """The next rows of some planes."""
        for plane, still, other in zip(range(region.start[0], region.stop[0]), fixed, moved, strict=True):
            self._add(plane, still.ravel(), other.ravel())

    def _add(self, plane: int, fixed: Array, moved: Array) -> None:
        here = self._waiting.setdefault(plane, _Waiting())
        if len(here.rest[0]):
            fixed, moved = (np.concatenate(both) for both in zip(here.rest, (fixed, moved), strict=True))
        leaves, at = self._within(here.leaf, len(fixed))
        if leaves:
            sums = moments_of_rows(fixed[:at], moved[:at], np.array([size for size, _ in leaves]))
            for total, (_, merges) in zip(sums.T, leaves, strict=True):
                here.sums.append(total)
                for _ in range(merges):
                    right = here.sums.pop()
                    here.sums[-1] = here.sums[-1] + right
        here.leaf += len(leaves)
        here.rest = fixed[at:].copy(), moved[at:].copy()
        if here.leaf == len(self.leaves):
            self.sums[:, plane - self.own.start] = here.sums[0]
            del self._waiting[plane]

    def _within(self, first: int, voxels: int) -> tuple[list[tuple[int, int]], int]:
        """The leaves from the first on that so many voxels fill, and the voxels in them."""
        last, at = first, 0
        while last < len(self.leaves) and at + self.leaves[last][0] <= voxels:
            at, last = at + self.leaves[last][0], last + 1
        return self.leaves[first:last], at


def _leaves(voxels: int) -> Iterator[tuple[int, int]]:
    """Sizes of the leaves, in order, and how many sums of two halves are complete after each."""
    if voxels <= LEAF:
        yield voxels, 0
        return
    half = voxels // 2
    half -= half % 8
    yield from _leaves(half)
    *others, (size, merges) = _leaves(voxels - half)
    yield from others
    yield size, merges + 1


class BlockSums:
    """Sums over blocks (1, fy, fx) of own planes, (planes, Y, X), as ``coarse_pair.plane_sums`` gives them for whole planes."""

    def __init__(self, own: Span, plane: tuple[int, int], factors: Index) -> None:
        self.own, (_, self.fy, self.fx) = own, factors
        self.ny, self.nx = plane[0] // self.fy, plane[1] // self.fx
        self.sums = np.zeros((len(own), self.ny, self.nx), np.float32)
        self._rows = dict[int, Array]()

    def add(self, region: Region, part: Any) -> None:
        """The next rows of some planes."""
        for z in range(region.start[0], region.stop[0]):
            self._add(z, region.start[1], part[z - region.start[0]][:, : self.nx * self.fx])

    def _add(self, plane: int, first: int, rows: Array) -> None:
        last = min(first + len(rows), self.ny * self.fy)
        y = first
        while y < last:
            block, stop = y // self.fy, min((y // self.fy + 1) * self.fy, last)
            some = rows[y - first : stop - first]
            total = self._rows.pop(plane, None)
            if total is None:
                total = some.sum(axis=0)
            else:
                for row in some:
                    total += row
            if stop == (block + 1) * self.fy:
                self.sums[plane - self.own.start, block] = total.reshape(self.nx, self.fx).sum(axis=1)
            else:
                self._rows[plane] = total
            y = stop

"""Sums over planes that come in bands of rows, with the bits that NumPy's sum of a whole plane has.

NumPy adds up a row of numbers by halves, and those by halves, down to blocks; a plane is split where NumPy splits it, into leaves
that are summed as soon as they are there. Sums over rows are added row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Index, Region, Span
from daskreg.kernels.compiler.launch import thread_count
from daskreg.planning.source import LEAF

Array = NDArray[np.float32]
MOMENTS = 6  # 1, F, M, FF, MM, FM


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
        numbers = range(region.start[0], region.stop[0])
        with ThreadPoolExecutor(thread_count(), "daskreg-sums") as pool:
            list(pool.map(lambda z: self._add(z, fixed[z - numbers.start].ravel(), moved[z - numbers.start].ravel()), numbers))

    def _add(self, plane: int, fixed: Array, moved: Array) -> None:
        here = self._waiting.setdefault(plane, _Waiting())
        if len(here.rest[0]):
            fixed, moved = (np.concatenate(both) for both in zip(here.rest, (fixed, moved), strict=True))
        at = 0
        while here.leaf < len(self.leaves) and at + self.leaves[here.leaf][0] <= len(fixed):
            size, merges = self.leaves[here.leaf]
            here.sums.append(moment_sums(fixed[at : at + size], moved[at : at + size]))
            for _ in range(merges):
                right = here.sums.pop()
                here.sums[-1] = here.sums[-1] + right
            at, here.leaf = at + size, here.leaf + 1
        here.rest = fixed[at:].copy(), moved[at:].copy()
        if here.leaf == len(self.leaves):
            self.sums[:, plane - self.own.start] = here.sums[0]
            del self._waiting[plane]


def moment_sums(fixed: Array, moved: Array) -> NDArray[np.float64]:
    """(6,) over voxels where moved is in its domain."""
    inside = np.isfinite(moved)
    if not inside.any():
        return np.zeros(MOMENTS)
    if not inside.all():
        fixed, moved = np.where(inside, fixed, np.float32(0)), np.where(inside, moved, np.float32(0))
    f, m = fixed.astype(np.float64), moved.astype(np.float64)
    return np.array([np.count_nonzero(inside), f.sum(), m.sum(), (f * f).sum(), (m * m).sum(), (f * m).sum()])


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

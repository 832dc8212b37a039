"""Coarse levels of an image that is read once, a part at a time, and never held: each part is added to the sums it belongs to.

The image comes in bands of rows, and each band plane by plane. Along z a plane belongs to a few coarse planes, whose sums are
held for the rows of the band; along y a band belongs to a few coarse rows beyond it, whose sums wait for the next band.
Operations on a voxel and their order are those of ``images.downsample``, so a level has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Index, Sigmas, Span
from daskreg.kernels.smoothing.downsampling import downsample_table, downsample_x
from daskreg.kernels.smoothing.streaming import add_four_planes, add_plane, add_rows
from daskreg.planning.source import TOGETHER, slots_of

Array = NDArray[np.float32]
Put = Callable[[int, Span, Array], None]  # rows of a coarse plane


@dataclass(frozen=True)
class Taps:
    """Which fine voxels along an axis each coarse one is a weighted sum of.

    first: (m,) int32;  table: (m, taps) float32;  length: fine voxels;  None in ``of`` where an axis stays as it is
    """

    first: NDArray[np.int32]
    table: NDArray[np.float32]
    length: int

    @classmethod
    def of(cls, length: int, factor: int, sigma: float | None) -> Taps | None:
        """Of a level."""
        return cls(*downsample_table(length, factor, sigma), length) if factor > 1 or sigma else None

    def reads(self, coarse: int) -> Span:
        """The fine voxels of a coarse one."""
        first = int(self.first[coarse])
        return Span(first, first + self.table.shape[1]) & Span(0, self.length)

    def reached(self, fine: Span, coarse: Span) -> Span:
        """Those of some coarse voxels that any of the fine ones belongs to; they follow each other."""
        stops = np.minimum(self.first + self.table.shape[1], self.length)
        start = int(np.searchsorted(stops, fine.start, side="right"))
        return Span(start, int(np.searchsorted(self.first, fine.stop, side="left"))) & coarse


def source_planes(length: int, factor: int, sigma: float | None, own: Span) -> Span:
    """The planes of an image that planes of a level are made of."""
    taps = Taps.of(length, factor, sigma)
    if taps is None or not len(own):
        return own
    return Span(taps.reads(own.start).start, taps.reads(own.stop - 1).stop)


class FieldStream:
    """One field of a level, the voxels or the mask, from parts that ``add`` takes.

    shape: of the image;  own: planes of the level;  put: takes rows of the level when they are whole
    """

    def __init__(self, shape: Index, factors: Index, sigmas: Sigmas | None, own: Span, put: Put) -> None:
        wide: tuple[float | None, ...] = sigmas or (None, None, None)
        self.z, self.y, self.x = (Taps.of(n, f, s) for n, f, s in zip(shape, factors, wide, strict=True))
        self.shape, self.factors, self.own, self.put = shape, factors, own, put
        self.open, self.sums = list[int](), np.zeros((0, 0, 0), np.float32)  # coarse planes of the band, and their sums
        self.slots = slots_of(factors[0], wide[0])
        self.waiting = dict[int, tuple[Span, Array]]()  # coarse rows that need the next band, by plane
        self.rows = Span(0, 0)

    def add(self, planes: Span, rows: Span, part: Array) -> None:
        """The next planes of a band of rows: bands come in order, the planes of each too."""
        if rows != self.rows:
            self.rows, self.open = rows, []
            if self.z is not None and self.sums.shape[1] != len(rows):
                self.sums = np.zeros((self.slots, len(rows), self.shape[2]), np.float32)
        if self.z is None:
            for z in range(*_ends(planes & self.own)):
                self._plane_done(z, part[z - planes.start][None])
            return
        for start in range(planes.start, planes.stop, TOGETHER):
            some = Span(start, min(start + TOGETHER, planes.stop))
            self._add(some, part[some.within(planes)])

    def _add(self, planes: Span, part: Array) -> None:
        assert self.z is not None
        reached = self.z.reached(planes, self.own)
        self._hold(reached)
        if not len(reached):
            return
        weights = np.stack([self._weights(c, planes) for c in self.open])
        shape = (part.shape[1], len(self.open), part.shape[2])
        if len(planes) == TOGETHER:
            add_four_planes(shape, weights, part, self.sums)
        else:
            for k in range(len(planes)):
                add_plane(shape, np.ascontiguousarray(weights[:, k]), part[k], self.sums)
        for slot, coarse in enumerate(self.open):
            if self.z.reads(coarse).stop in range(planes.start + 1, planes.stop + 1):
                self._plane_done(coarse, self.sums[slot][None])

    def _weights(self, coarse: int, planes: Span) -> Array:
        assert self.z is not None
        found, reads = np.zeros(len(planes), np.float32), planes & self.z.reads(coarse)
        at = slice(reads.start - int(self.z.first[coarse]), reads.stop - int(self.z.first[coarse]))
        found[reads.within(planes)] = self.z.table[coarse, at]
        return found

    def _hold(self, reached: Span) -> None:
        """Sums of these coarse planes, and of no others."""
        wanted = list(range(reached.start, reached.stop)) if len(reached) else []
        if wanted == self.open:
            return
        kept = [c for c in self.open if c in wanted]  # the last ones of those before, the first ones of those now
        for slot, coarse in enumerate(kept):
            if self.open.index(coarse) != slot:
                self.sums[slot] = self.sums[self.open.index(coarse)]
        self.sums[len(kept) : len(wanted)] = 0
        self.open = wanted

    def _plane_done(self, coarse: int, band: Array) -> None:
        """Rows of a coarse plane (1, rows, X), at full resolution along y and x."""
        if self.y is None:
            self.put(coarse, self.rows, self._along_x(band))
            return
        reached = self.y.reached(self.rows, Span(0, len(self.y.first)))
        sums = np.zeros((1, len(reached), self.shape[2]), np.float32)
        if coarse in self.waiting:
            before, rows = self.waiting.pop(coarse)
            sums[:, before.within(reached)] = rows
        self._add_rows(reached, band, sums)
        whole = sum(self.y.reads(j).stop <= self.rows.stop for j in range(reached.start, reached.stop))
        done = Span(reached.start, reached.start + whole)
        if len(done):
            self.put(coarse, done, self._along_x(sums[:, :whole]))
        if whole < len(reached):
            self.waiting[coarse] = Span(done.stop, reached.stop), sums[:, whole:].copy()

    def _add_rows(self, reached: Span, band: Array, sums: Array) -> None:
        assert self.y is not None
        at = slice(reached.start, reached.stop)
        first = self.y.first[at]
        low = np.maximum(self.rows.start - first, np.maximum(-first, 0)).clip(0).astype(np.int32)
        high = np.minimum(min(self.rows.stop, self.y.length) - first, self.y.table.shape[1]).astype(np.int32)
        shape = (1, len(reached), self.shape[2])
        add_rows(shape, low, high, (first - self.rows.start).astype(np.int32), self.y.table[at], band, sums)

    def _along_x(self, rows: Array) -> Array:
        if self.x is None:
            whole: Array = rows[0]
            return whole
        smaller = np.empty((*rows.shape[:2], len(self.x.first)), np.float32)
        downsample_x(smaller.shape, self.x.first, self.x.table, np.ascontiguousarray(rows), smaller)
        made: Array = smaller[0]
        return made


def _ends(span: Span) -> tuple[int, int]:
    return span.start, span.stop

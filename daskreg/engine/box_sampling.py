"""The moving image on boxes of the fixed grid, from the box of it that each of them reads: no more of it has to be in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.reach import LARGEST, SamplingMap
from daskreg.grid import Index, Region
from daskreg.kernels.sampling.cpu import plane_range, sample

Array = NDArray[np.float32]
Read = Callable[[Region], Array]
LEAST_EDGE = 8  # voxels of a box that is not split further


@dataclass(frozen=True)
class BoxSampler:
    """Samples an image of a shape that ``read`` gives box by box, of at most ``most`` bytes where that is possible.

    mapping: of the whole fixed grid;  domain: see ``kernels.sampling.cpu``
    """

    mapping: SamplingMap
    shape: Index
    read: Read
    domain: int
    most: int

    def __call__(self, box: Region, u: Array | None = None) -> Array:
        """Moved in a box, NaN out of the domain;  u: the displacement there (3, Z, Y, X), voxels."""
        parts = list(self._parts(box, box, u))
        if len(parts) == 1:
            return self._sampled(*parts[0], u)
        moved = np.empty(box.shape, np.float32)
        for part, source in parts:
            moved[part.within(box)] = self._sampled(part, source, _of_part(u, part, box))
        return moved

    def _sampled(self, box: Region, source: Region | None, u: Array | None) -> Array:
        if source is None:
            return np.full(box.shape, np.nan, np.float32)
        voxels, moved = self.read(source), np.empty(box.shape, np.float32)
        affine = _between(self.mapping.affine, box.start, source.start)
        sample(box.shape, 0, affine, self.mapping.linear, u, 0, voxels.shape[0], self.domain, voxels, moved)
        return moved

    def _parts(self, part: Region, box: Region, u: Array | None) -> Iterator[tuple[Region, Region | None]]:
        """Parts of a box and what each reads, None for nothing; halved while that is too much."""
        source = self._reads(part, _of_part(u, part, box))
        longest = max((2, 1, 0), key=lambda axis: part.shape[axis])
        if source is None or 4 * source.size <= self.most or part.shape[longest] <= LEAST_EDGE:
            yield part, source
            return
        middle = (part.start[longest] + part.stop[longest]) // 2
        stop, start = list(part.stop), list(part.start)
        stop[longest] = start[longest] = middle
        yield from self._parts(Region.of(part.start, stop), box, u)
        yield from self._parts(Region.of(start, part.stop), box, u)

    def _reads(self, box: Region, u: Array | None) -> Region | None:
        """With a voxel of doubt, so that the box's faces are no faces of the image but where the image ends."""
        start, stop = [0, 0, 0], [0, 0, 0]
        for line in range(3):
            low, high = self._range(line, box, u)
            start[line] = max(math.floor(low) - 1, 0)
            stop[line] = min(math.floor(high) + 3, self.shape[line])
            if stop[line] <= start[line]:
                return None
        return Region.of(start, stop)

    def _range(self, line: int, box: Region, u: Array | None) -> tuple[float, float]:
        """Least and largest coordinate of the points of a box."""
        if u is None:
            row = [float(v) / 2**32 for v in self.mapping.affine[4 * line : 4 * line + 4]]
            ends = [(a * s, a * (e - 1)) for a, s, e in zip(row, box.start, box.stop, strict=False)]
            low, high = row[3] + sum(map(min, ends)), row[3] + sum(map(max, ends))
        else:
            affine = _between(self.mapping.affine, box.start, (0, 0, 0))
            row_first = (*affine[4 * line : 4 * line + 4], *affine[:8])
            linear = (*self.mapping.linear[3 * line : 3 * line + 3], *self.mapping.linear[:6])
            rows = plane_range(box.shape, 0, row_first, linear, u)
            low, high = -float(rows[1].max()), float(rows[0].max())
        low, high = (float(np.clip(np.nan_to_num(v), -LARGEST, LARGEST)) for v in (low, high))
        return low, high


def _between(affine: tuple[np.int64, ...], first: Index, origin: Index) -> tuple[np.int64, ...]:
    """A and t for indices that count from ``first``, to coordinates that count from ``origin``; exact."""
    rows = []
    for line in range(3):
        a = [int(v) for v in affine[4 * line : 4 * line + 4]]
        shift = a[3] + sum(k * s for k, s in zip(a, first, strict=False)) - (origin[line] << 32)
        rows += [np.int64(v) for v in (*a[:3], shift)]
    return cast("tuple[np.int64, ...]", tuple(rows))


def _of_part(u: Any, part: Region, box: Region) -> Any:
    if u is None or part == box:
        return u
    return np.ascontiguousarray(u[(slice(None), *part.within(box))])


def keeping_whole(read: Read, shape: Index, most: int) -> Read:
    """``read``, of an image that is read once and kept where it takes no more than so many bytes."""
    if 4 * math.prod(shape) > most:
        return read
    kept = list[Array]()

    def part(region: Region) -> Array:
        if not kept:
            kept.append(read(Region((0, 0, 0), shape)))
        return np.ascontiguousarray(kept[0][region.slices])

    return part

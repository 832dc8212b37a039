"""Half-open boxes of voxels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """The voxels ``start <= index < stop``, order z, y, x."""

    start: Index
    stop: Index

    @classmethod
    def of(cls, start: Iterable[int], stop: Iterable[int]) -> Region:
        """A region from any three integers each, such as those of an array."""
        return cls(_index(start), _index(stop))

    @property
    def shape(self) -> Index:
        """Voxels along each axis, never negative."""
        return _index(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing a global array."""
        a, b = self.start, self.stop
        return slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2])

    def within(self, outer: Region) -> tuple[slice, slice, slice]:
        """For indexing an array that holds ``outer``."""
        return self.shift(_index(-a for a in outer.start)).slices

    def shift(self, offset: Index) -> Region:
        """Translated by ``offset`` voxels."""
        return Region(
            _index(map(sum, zip(self.start, offset, strict=True))), _index(map(sum, zip(self.stop, offset, strict=True)))
        )

    def grow(self, halo: int | Index) -> Region:
        """Larger by ``halo`` voxels on each side; clip with ``&``."""
        h = (halo, halo, halo) if isinstance(halo, int) else halo
        return Region(
            _index(a - k for a, k in zip(self.start, h, strict=True)), _index(b + k for b, k in zip(self.stop, h, strict=True))
        )

    def split(self, edge: int) -> Iterator[Region]:
        """Boxes of at most ``edge`` voxels along each axis that cover this one, z slowest."""
        for start in product(*(range(a, b, edge) for a, b in zip(self.start, self.stop, strict=True))):
            yield Region.of(start, (min(a + edge, n) for a, n in zip(start, self.stop, strict=True)))

    def __and__(self, other: Region) -> Region:
        """The voxels in both."""
        start = _index(map(max, self.start, other.start))
        return Region(start, _index(map(max, start, map(min, self.stop, other.stop))))


def _index(values: Iterable[int]) -> Index:
    z, y, x = values
    return int(z), int(y), int(x)

"""Boxes of a stored image, decoded by all cores, with little to do in Python for each chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from numpy.typing import NDArray

from daskreg import machine
from daskreg.grid import Region
from daskreg.storage.zarr.nodes import CheckedArray

PIECE_BYTES = 16 << 20  # of stored voxels, decoded by one call: the codecs share its chunks among all cores
HELD_BYTES = 256 << 20  # of pieces that are decoded at once
MAX_THREADS = 8
Order = tuple[int, int, int]


@dataclass(frozen=True)
class StoredVoxels:
    """Three axes of a stored array.

    name: of the Dask array that reads the same;  index: of each axis of the array, None for the three;  order: of the axes, as
    they are stored, in the image
    """

    name: str
    array: CheckedArray
    index: tuple[int | None, ...]
    order: Order = (0, 1, 2)

    def permute(self, order: Order, name: str) -> StoredVoxels:
        """With axis ``order[0]`` of the image first."""
        a, b, c = (self.order[axis] for axis in order)
        return replace(self, name=name, order=(a, b, c))

    def read(self, region: Region, into: NDArray[Any]) -> None:
        """Decode a region of the image into an array of its shape; into one of the stored type and order by a single call.

        Raises Unreadable.
        """
        if self.order == (0, 1, 2) and into.dtype == self.array.dtype and into.flags.c_contiguous:
            inner = iter(region.slices)
            box = [next(inner) if i is None else slice(i, i + 1) for i in self.index]
            self.array.read(box, into.reshape([s.stop - s.start for s in box]))
            return
        pieces = list(self._pieces(region))
        largest = max((math.prod(self.chunk), *(piece.size for piece in pieces))) * self.array.dtype.itemsize
        threads = max(1, min(MAX_THREADS, machine.cores().value, len(pieces), HELD_BYTES // largest))
        with ThreadPoolExecutor(threads, "daskreg-decode") as pool:
            for _ in pool.map(lambda piece: self._read(piece, region, into), pieces):
                pass

    def _read(self, piece: Region, region: Region, into: NDArray[Any]) -> None:
        stored = [slice(0, 0)] * 3
        for axis, part in zip(self.order, piece.slices, strict=True):
            stored[axis] = part
        inner = iter(stored)
        voxels = self.array[tuple(next(inner) if i is None else slice(i, i + 1) for i in self.index)]
        shape = [part.stop - part.start for part in stored]
        into[piece.within(region)] = voxels.reshape(shape).transpose(self.order)

    @property
    def chunk(self) -> Order:
        """Voxels of what is decoded as a whole, along the axes of the image."""
        array = self.array.array
        sizes = array.chunks if array.shards is None or math.prod(array.shards) > PIECE_BYTES else array.shards
        spatial = [size for size, i in zip(sizes, self.index, strict=True) if i is None]
        a, b, c = (spatial[axis] for axis in self.order)
        return a, b, c

    def _pieces(self, region: Region) -> Iterator[Region]:
        """Parts of a region that end where chunks do, of PIECE_BYTES where chunks are smaller."""
        length, chunk, shape = list(self.chunk), self.chunk, region.shape
        for axis in (2, 1, 0):
            across = math.prod(length[:axis] + length[axis + 1 :]) * self.array.dtype.itemsize
            whole = -(-shape[axis] // chunk[axis]) + 1
            length[axis] = chunk[axis] * max(1, min(whole, PIECE_BYTES // (across * chunk[axis])))
        starts = (range(a // n * n, b, n) for a, b, n in zip(region.start, region.stop, length, strict=True))
        for start in product(*starts):
            yield Region.of(start, map(sum, zip(start, length, strict=True))) & region

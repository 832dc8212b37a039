"""Coarser levels of an image, from its rows of chunks while they are in memory: each chunk is written once, none is read back."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import gather_planes
from daskreg.grid import Region, Span
from daskreg.storage import RunStore
from daskreg.storage.zarr.pyramid import block_mean, coarse_region

Key = tuple[int, int]  # a level, a row of its chunks


class CoarseRows:
    """The rows of chunks of all levels but the first, of which this rank has planes.

    A row of level k needs 2^k rows of level 0. One whose voxels are all this rank's is written as soon as they are there; what is
    divided between ranks is gathered by ``finish``. Threads may add parts at once.

    axis: of the stored image, along which rows follow each other;  written: planes of level 0 that each rank writes.
    """

    def __init__(self, store: RunStore, name: str, axis: int, written: Sequence[Span], rank: int) -> None:
        self.store, self.name, self.axis, self.rank = store, name, axis, rank
        self.shapes, self.steps = store.level_shapes(name), store.coarse_steps(name)
        self.depth, (self.lead, self.dtype) = store.chunk(name)[axis], store.voxel_type(name)
        self.planes = [list(written)]  # of each level, by rank
        for step in self.steps:
            k = step[axis]
            self.planes.append([Span(-(-span.start // k), -(-span.stop // k)) for span in self.planes[-1]])
        self._rows: dict[Key, NDArray[Any]] = {}
        self._missing: dict[Key, int] = {}
        self._lock = Lock()

    def means(self, voxels: Any) -> Any:
        """What ``add`` needs of voxels (.., Z, Y, X) of level 0, also on a GPU; None where there is no other level."""
        return block_mean(voxels, self.steps[0]) if self.steps else None

    def add(self, region: Region, means: NDArray[Any] | None) -> None:
        """Whole chunks of level 0, as they are stored: the ``means`` of their voxels, of ``region``."""
        if means is not None:
            self._add(1, coarse_region(region, self.steps[0]), means)

    def _add(self, level: int, region: Region, voxels: NDArray[Any]) -> None:
        row = region.start[self.axis] // self.depth
        mine = self._box(level, self._row(level, row) & self.planes[level][self.rank])
        with self._lock:
            held = self._held(level, row, mine)
        held[(..., *region.within(mine))] = voxels
        with self._lock:
            self._missing[level, row] -= region.size
            whole = self._missing[level, row] == 0
            alone = self._owners(level, row) == [self.rank]
            if whole and alone:
                del self._rows[level, row]
        if whole and level < len(self.steps):
            step = self.steps[level]
            self._add(level + 1, coarse_region(mine, step), block_mean(held, step))
        if whole and alone:
            self.store.write_stored(self.name, level, mine, held)

    def _held(self, level: int, row: int, box: Region) -> NDArray[Any]:
        if (level, row) not in self._rows:
            self._rows[level, row], self._missing[level, row] = self._empty(box), box.size
        return self._rows[level, row]

    def _empty(self, box: Region) -> NDArray[Any]:
        return np.empty((*self.lead, *box.shape), self.dtype)

    def finish(self, comm: Communicator) -> None:
        """Write the rows that are divided between ranks; all ranks call this when all their parts are added."""
        for level in range(1, len(self.shapes)):
            for row in range(-(-self.shapes[level][self.axis] // self.depth)):
                owners = self._owners(level, row)
                if len(owners) > 1:
                    self._gather(level, row, owners[0], comm)

    def _gather(self, level: int, row: int, owner: int, comm: Communicator) -> None:
        span = self._row(level, row)
        owned = [span & planes for planes in self.planes[level]]
        wanted = [span if rank == owner else Span(0, 0) for rank in range(comm.size)]
        mine = owned[comm.rank]
        held = self._rows.pop((level, row), None)
        if held is None:  # it has no plane of this row
            held = self._empty(self._box(level, Span(0, 0)))
        here = np.ascontiguousarray(np.moveaxis(held, self.axis - 3, -3))
        found = gather_planes(comm, owned, wanted, here, mine.start, "output")
        if comm.rank == owner:
            self.store.write_stored(self.name, level, self._box(level, span), np.moveaxis(found, -3, self.axis - 3))

    def _row(self, level: int, row: int) -> Span:
        return Span(row * self.depth, min((row + 1) * self.depth, self.shapes[level][self.axis]))

    def _owners(self, level: int, row: int) -> list[int]:
        """The ranks that have planes of a row; the first writes it."""
        span = self._row(level, row)
        return [rank for rank, planes in enumerate(self.planes[level]) if len(planes & span)]

    def _box(self, level: int, planes: Span) -> Region:
        start, stop = [0, 0, 0], list(self.shapes[level])
        start[self.axis], stop[self.axis] = planes.start, planes.stop
        return Region.of(start, stop)

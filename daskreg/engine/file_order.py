"""The moving image on a block of the fixed grid, sampled in the order in which its file is read: no part is decoded twice.

Points of the fixed grid that lie near each other are a brick, whose points read a box of the moving image. The file is read box
by box, and each box samples the points that lie within it: between two of its planes and two of its rows. Points between two
boxes are sampled from the planes and rows at their faces, which are kept until the next box is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.box_sampling import between, reads
from daskreg.engine.reach import SamplingMap
from daskreg.grid import Index, Region, Span
from daskreg.kernels.sampling.cpu import sample_cells
from daskreg.planning.source import BRICK, Boxes

Array = NDArray[np.float32]
ReadAll = Callable[[Sequence[Region]], Iterable[tuple[Region, Array]]]
FAR = 1 << 30  # voxels


class PlacedMap(NamedTuple):
    """A map of the whole fixed grid; u: gives the displacement in a box (3, Z, Y, X), voxels, None without one."""

    mapping: SamplingMap
    u: Callable[[Region], Array] | None = None

    def displacement(self, box: Region) -> Array | None:
        """In a box of the fixed grid."""
        return None if self.u is None else self.u(box)


@dataclass(frozen=True, eq=False)
class Brick:
    """Points of the fixed grid that are sampled together. reads: voxels of the moving image;  moved: their values, so far"""

    place: PlacedMap
    box: Region
    reads: Region
    moved: Array

    def sample(self, windows: Sequence[CellWindow], extent: tuple[np.int32, ...], domain: int) -> None:
        """The points that lie within windows of the moving image."""
        touched = [w for w in windows if (w.region & self.reads).size]
        u = self.place.displacement(self.box) if touched else None
        affine = between(self.place.mapping.affine, self.box.start, (0, 0, 0))
        for window in touched:
            given = window.cells, _numbers(window.region.start), extent, domain, window.voxels, self.moved
            sample_cells(self.box.shape, 0, affine, self.place.mapping.linear, u, *given)


class CellWindow(NamedTuple):
    """Voxels of a region, from which points of some cells can be sampled (``sample_cells``)."""

    region: Region
    cells: tuple[np.int32, ...]
    voxels: Array


@dataclass(frozen=True)
class Moved:
    """What a block of the fixed grid has become by one map."""

    bricks: list[Brick]

    def part(self, box: Region) -> Array:
        """In a box of the block; NaN out of the domain."""
        found = np.full(box.shape, np.nan, np.float32)
        for brick in self.bricks:
            shared = brick.box & box
            if shared.size:
                found[shared.within(box)] = brick.moved[shared.within(brick.box)]
        return found


@dataclass(frozen=True)
class FileOrderSampler:
    """Samples an image of a shape that is read in ``boxes``.

    piece: voxels that are decoded at once;  domain: see ``kernels.sampling.cpu``
    """

    shape: Index
    boxes: Boxes
    piece: Index
    domain: int

    def sample(self, block: Region, maps: Sequence[PlacedMap], read: ReadAll, also: Span | None = None) -> list[Moved]:
        """Moved by each map.

        read: gives boxes in order, with their voxels;  also: planes of which all boxes are read, for what else is made of them
        """
        found = [Moved(list(self._bricks(block, one))) for one in maps]
        bricks = [brick for moved in found for brick in moved.bricks]
        part, extent = self._part(bricks, also), _numbers(self.shape)
        reached = np.array([[*b.reads.start, *b.reads.stop] for b in bricks], np.int64).reshape(-1, 2, 3)
        faces = _Faces(part, several=part.start[1] // self.boxes.rows < (part.stop[1] - 1) // self.boxes.rows)
        for region, voxels in read(list(self._wanted(part, reached, also))):
            touched = np.flatnonzero(_meets(reached, region))
            windows = list(faces.windows(region, voxels)) if len(touched) else []
            for index in touched:
                bricks[index].sample(windows, extent, self.domain)
            faces.keep(region, voxels)
        return found

    def _bricks(self, block: Region, place: PlacedMap) -> Iterator[Brick]:
        for box in _split(block, BRICK):
            read = reads(place.mapping, self.shape, box, place.displacement(box))
            if read is not None:
                yield Brick(place, box, read, np.full(box.shape, np.nan, np.float32))

    def _part(self, bricks: Sequence[Brick], also: Span | None) -> Region:
        """Whole pieces around all that is read."""
        every = [brick.reads for brick in bricks]
        if also is not None:
            every.append(Region((also.start, 0, 0), (also.stop, *self.shape[1:])))
        if not every:
            return Region((0, 0, 0), (0, 0, 0))
        low = np.min([r.start for r in every], axis=0) // self.piece * self.piece
        high = -(-np.max([r.stop for r in every], axis=0) // self.piece) * self.piece
        return Region.of(low, np.minimum(high, self.shape))

    def _wanted(self, part: Region, reached: NDArray[np.int64], also: Span | None) -> Iterator[Region]:
        for region in self.boxes.within(part):
            asked = also is not None and len(Span(region.start[0], region.stop[0]) & also)
            if asked or _meets(reached, region).any():
                yield region


def _meets(reached: NDArray[np.int64], region: Region) -> NDArray[np.bool_]:
    """Which boxes, (n, 2, 3) starts and stops, share voxels with a region."""
    found = (reached[:, 0] < np.asarray(region.stop)) & (reached[:, 1] > np.asarray(region.start))
    return np.asarray(found.all(axis=1))


class _Faces:
    """The last plane and row of boxes of a part of the image, which points before the next box need too.

    several: whether there is more than one band of rows
    """

    def __init__(self, part: Region, *, several: bool) -> None:
        self.part = part
        self.plane: tuple[Region, Array] | None = None
        planes, _, columns = part.shape
        self.rows = np.zeros((planes, columns) if several else (0, 0), np.float32)  # last rows of the band before
        self.corner = np.zeros((0, 0), np.float32)  # that of the plane before

    def windows(self, region: Region, voxels: Array) -> Iterator[CellWindow]:
        """A box, and what lies between it and those before."""
        (z, y, x), (z_stop, y_stop, x_stop) = region.start, region.stop
        before = self.plane is not None and self._follows(region)
        across, down = [False, *([True] * before)], [False, *([True] * (y > self.part.start[1]))]
        for in_z, in_y in product(across, down):
            planes, cells_z = _ends(z, z_stop, in_z, self.part.start[0], self.part.stop[0])
            rows, cells_y = _ends(y, y_stop, in_y, self.part.start[1], self.part.stop[1])
            if cells_z[0] >= cells_z[1] or cells_y[0] >= cells_y[1]:
                continue
            window = Region((planes.start, rows.start, x), (planes.stop, rows.stop, x_stop))
            yield CellWindow(window, _numbers((*cells_z, *cells_y)), self._joined(region, voxels, in_z, in_y))

    def _follows(self, region: Region) -> bool:
        assert self.plane is not None
        last = self.plane[0]
        return last.stop[0] == region.start[0] and last.start[1] == region.start[1]

    def _joined(self, region: Region, voxels: Array, in_z: bool, in_y: bool) -> Array:
        at = slice(region.start[0] - self.part.start[0], region.stop[0] - self.part.start[0])
        if not in_z:
            return voxels if not in_y else np.stack([self.rows[at], voxels[:, 0]], axis=1)
        assert self.plane is not None
        planes = np.stack([self.plane[1], voxels[0]]) if not in_y else np.stack([self.plane[1][0], voxels[0, 0]])
        return planes if not in_y else np.stack([np.stack([self.corner[0], self.rows[at][0]]), planes], axis=1)

    def keep(self, region: Region, voxels: Array) -> None:
        """For the next boxes."""
        if self.rows.size:
            at = slice(region.start[0] - self.part.start[0], region.stop[0] - self.part.start[0])
            self.corner = self.rows[at][-1:].copy()
            self.rows[at] = voxels[:, -1]
        self.plane = region, voxels[-1].copy()


def _ends(start: int, stop: int, between: bool, first: int, last: int) -> tuple[Span, tuple[int, int]]:
    """Planes of a window, and of which cells: of a box, or of its first plane and the one before."""
    if between:
        return Span(start - 1, start + 1), (start - 1, start)
    return Span(start, stop), (-FAR if start == first else start, FAR if stop == last else stop - 1)


def _split(block: Region, edges: Index) -> Iterator[Region]:
    for start in product(*(range(a, b, k) for a, b, k in zip(block.start, block.stop, edges, strict=True))):
        yield Region.of(start, (min(a + k, n) for a, k, n in zip(start, edges, block.stop, strict=True)))


def _numbers(values: Iterable[int]) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)

"""Images that stay in their files: no plane at full resolution is kept, levels are made while the file is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Config
from daskreg.engine.background import Background
from daskreg.engine.counted_reader import CountedReader, RegionReader
from daskreg.engine.images import LEAST_WEIGHT, Array, Image, LevelPlanes, is_full, rescale
from daskreg.engine.level_stream import FieldStream, source_planes
from daskreg.engine.pass_progress import PassProgress
from daskreg.engine.plane_sums import BlockSums
from daskreg.engine.planes import Allocate, ArrayPlanes, Planes, copy, on
from daskreg.engine.stored_images import StoredImage
from daskreg.grid import Index, Region, Sigmas, Span
from daskreg.kernels.device import CPU
from daskreg.planning.source import AHEAD, Boxes
from daskreg.storage.batches import read_ahead

Found = TypeVar("Found")
CACHED = 1 << 18  # voxels that are scaled together: they stay in the processor's cache


@dataclass(frozen=True)
class ScaledSource:
    """An image in its file, as it is compared: scaled to [0, 1], with weights where it has a mask or stored background.

    boxes: in which it is read;  made_in: in which its levels are made;  name: in messages;  ends: the intensities that become 0
    and 1;  least: value of voxels that are background;  top: the largest weight of the mask
    """

    voxels: CountedReader
    mask: RegionReader | None
    background: Background | None
    boxes: Boxes
    config: Config
    made_in: Boxes
    name: str = "an image"
    ends: tuple[float, float] = (0.0, 1.0)
    least: float = 0.0
    top: float = 1.0

    @property
    def masked(self) -> bool:
        """Whether voxels have weights."""
        return self.mask is not None or self.background is not None

    def stored(self, region: Region) -> tuple[Array, NDArray[np.bool_] | None]:
        """Voxels as they are stored, and which of them are none of the background; None where there is none."""
        if self.background is None:
            return self.voxels.read(region), None
        margin = self.background.margin
        around = region.grow((margin, margin, 0)) & Region((0, 0, 0), self.boxes.shape)
        found, inner = self.voxels.read(around), region.within(around)
        return np.ascontiguousarray(found[inner]), self.background.known(found)[inner]

    def read(self, region: Region) -> tuple[Array, Array | None]:
        """Voxels and weights."""
        voxels, known = self._scaled(region)
        return voxels, self.weights(region, known)

    def values(self, region: Region) -> Array:
        """Voxels alone."""
        return self._scaled(region)[0]

    def _scaled(self, region: Region) -> tuple[Array, NDArray[np.bool_] | None]:
        voxels, known = self.stored(region)
        for part in _parts(voxels, known):
            if known is not None:
                voxels[part] = np.where(known[part], voxels[part], np.float32(self.least))
            rescale(voxels[part], self.ends, self.config)
        return voxels, known

    def weights(self, region: Region, known: NDArray[np.bool_] | None) -> Array | None:
        """Of the mask, where voxels are known."""
        if self.mask is None:
            return None if known is None else known.astype(np.float32)
        weights = self.mask.read(region)
        if known is not None:
            weights *= known
        weights /= np.float32(self.top)
        return weights

    def all_of(self, planes: Span, purpose: str) -> Iterator[tuple[Region, tuple[Array, Array | None]]]:
        """Boxes with voxels and weights; the next ones are read while one is in use."""
        return self.each(self.read, planes, purpose)

    def each(self, read: Callable[[Region], Found], planes: Span, purpose: str) -> Iterator[tuple[Region, Found]]:
        """What is read of all boxes of some planes; the log says how far it is, where it takes long.

        purpose: of this pass over the file, in the log
        """
        return self.each_of(read, list(self.boxes.over(planes)), purpose)

    def each_of(self, read: Callable[[Region], Found], regions: Sequence[Region], purpose: str) -> Iterator[tuple[Region, Found]]:
        """As ``each``, of any boxes."""
        progress = PassProgress(f"{self.name} is read for {purpose}", sum(region.size for region in regions))
        for region, found in read_ahead(read, regions, AHEAD):
            yield region, found
            progress.add(region.size)


def _parts(voxels: Array, known: Any) -> Iterator[tuple[int, slice]]:
    """A few rows of a plane at a time."""
    rows = max(1, CACHED // max(1, voxels.shape[2]))
    for z in range(len(voxels)):
        for y in range(0, voxels.shape[1], rows):
            yield z, slice(y, y + rows)


class Wanted(NamedTuple):
    """A level, its planes that a rank makes, and whether it is out of memory."""

    factors: Index
    sigmas: Sigmas | None
    own: Span
    kept: bool = False


class SourcePlanes:
    """All planes of a source, as ``Planes`` that are read only: the voxels, or the weights."""

    lead, dtype = 1, np.dtype(np.float32)

    def __init__(self, source: ScaledSource, *, weights: bool = False) -> None:
        self.source, self.which = source, int(weights)
        self.span, self.plane = Span(0, source.boxes.shape[0]), source.boxes.shape[1:]

    def read(self, planes: Span, into: Any) -> None:
        """See ``Planes``."""
        region = Region((planes.start, 0, 0), (planes.stop, *self.plane))
        found = self.source.read(region)[self.which]
        assert found is not None, "an image without weights has none to read"
        copy(found, into[0])

    def write(self, planes: Span, source: Any) -> None:
        """Never: the file is an input."""
        raise TypeError("planes of a stored image are read only")


@dataclass
class SourceImage(StoredImage):
    """An image that stays in its file.

    source: what is read;  positive: counted while the levels are made
    """

    source: ScaledSource = field(kw_only=True)
    _sums: tuple[Index, list[BlockSums]] | None = field(default=None, kw_only=True)
    _ready: dict[tuple[Index, Sigmas | None], tuple[Span, LevelPlanes]] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, source: ScaledSource, allocate: Allocate, **given: Any) -> SourceImage:
        """Of all its planes."""
        nothing = np.empty((0, *source.boxes.shape[1:]), np.float32)
        weights = SourcePlanes(source, weights=True) if source.masked else None
        full = LevelPlanes(SourcePlanes(source), weights)
        mask = nothing if source.masked else None
        return cls(nothing, mask=mask, full=full, allocate=allocate, source=source, **given)

    def prepare(self, levels: Sequence[Wanted]) -> None:
        """Make levels, all in one pass over the file."""
        made = [self._maker(one) for one in levels if len(one.own)]
        positive, own = 0, self.partition[self.rank]
        spans = [self._reads(one) for one in levels if len(one.own)] + ([own] if self.mask is not None and len(own) else [])
        if not spans:
            return
        boxes = list(self.source.made_in.over(_hull(spans)))
        for region, (voxels, weights) in self.source.each_of(self.source.read, boxes, "its levels"):
            for maker in made:
                maker.add(region, voxels, weights)
            if weights is not None:
                inside = (Span(region.start[0], region.stop[0]) & own).within(Span(region.start[0], region.stop[0]))
                positive += int(np.count_nonzero(weights[inside] > 0))
        self.positive = positive
        self._ready |= {(one.factors, one.sigmas): (one.own, maker.level) for one, maker in zip(_some(levels), made, strict=True)}

    def _reads(self, one: Wanted) -> Span:
        return source_planes(self.grid.shape[0], one.factors[0], None if one.sigmas is None else one.sigmas[0], one.own)

    def _maker(self, one: Wanted) -> _Level:
        plane = self.grid.coarsen(one.factors).shape[1:]
        masked = self.mask is not None
        make: Callable[..., Planes] = self.allocate if one.kept else ArrayPlanes.zeros
        voxels, mask = (make(1, one.own, plane, np.float32) if wanted else None for wanted in (True, masked))
        assert voxels is not None
        return _Level(self.grid.shape, one, self._reads(one), LevelPlanes(voxels, mask))

    def out_of_memory(self, factors: Index, kept: bool, sigmas: Sigmas | None = None) -> bool:
        """See ``Image``."""
        return kept

    def open(
        self, factors: Index, wanted: Sequence[Span], comm: Communicator, half: bool = False, kept: bool = False,
        sigmas: Sigmas | None = None,
    ) -> LevelPlanes:  # fmt: skip
        """See ``Image``."""
        if not kept:
            return Image.open(self, factors, wanted, comm, half, kept, sigmas)
        return self._level(Wanted(factors, sigmas, wanted[self.rank], kept))

    def coarse(self, factors: Index, own: Span, half: bool, sigmas: Sigmas | None = None) -> tuple[Array, Array | None]:
        """See ``Image``."""
        assert not half, "16-bit levels are for GPUs"
        level = self._level(Wanted(factors, sigmas, own))
        return _planes(level.voxels, own), None if level.mask is None else _planes(level.mask, own)

    def summing(self, factors: Index) -> Callable[[Region, Array, Array | None], None]:
        """What takes all boxes of the own planes in order, for ``block_sums`` to know the sums afterwards."""
        own, plane = self.partition[self.rank], self.source.boxes.shape[1:]
        self._sums = factors, [BlockSums(own, plane, factors) for _ in range(1 if self.mask is None else 2)]
        sums = self._sums[1]

        def add(region: Region, voxels: Array, weights: Array | None) -> None:
            here = Span(region.start[0], region.stop[0])
            if here & own != here:  # planes that another rank adds up
                at = (here & own).within(here)
                region = region & Region((own.start, 0, 0), (own.stop, *plane))
                voxels, weights = voxels[at], None if weights is None else weights[at]
            sums[0].add(region, voxels if weights is None else voxels * weights)
            if weights is not None:
                sums[1].add(region, weights)

        return add

    def block_sums(self, factors: Index) -> list[Array]:
        """``BlockSums`` of the own planes: of the voxels, or of the weighted voxels and of the weights."""
        if self._sums is None or self._sums[0] != factors:
            add = self.summing(factors)
            for region, (voxels, weights) in self.source.all_of(self.partition[self.rank], "the verdict"):
                add(region, voxels, weights)
        assert self._sums is not None
        return [one.sums for one in self._sums[1]]

    def _level(self, one: Wanted) -> LevelPlanes:
        """As it was prepared, or made now where nobody foresaw it."""
        span, level = self._ready.get((one.factors, one.sigmas), (Span(0, 0), None))
        if level is None or span & one.own != one.own:
            if not len(one.own):
                return self._maker(one).level
            self.prepare([one])
            level = self._ready[one.factors, one.sigmas][1]
        return level

    def _at_hand(self, factors: Index, sigmas: Sigmas | None) -> bool:
        return False


class _Level:
    """Makes one level from the boxes of an image. reads: the planes of the image that it is made of"""

    def __init__(self, shape: Index, one: Wanted, reads: Span, level: LevelPlanes) -> None:
        self.level, self.reads, self.full = level, reads, is_full(one.factors, one.sigmas)
        given = shape, one.factors, one.sigmas, one.own
        self.voxels = FieldStream(*given, self._put)
        self.weights = None if level.mask is None else FieldStream(*given, self._put_weight)
        self.pending = dict[tuple[int, int], Array]()

    def add(self, region: Region, voxels: Array, weights: Array | None) -> None:
        """A box of the image, in the order of ``Boxes``."""
        here, rows = Span(region.start[0], region.stop[0]), Span(region.start[1], region.stop[1])
        planes = here & self.reads
        if not len(planes):
            return
        at = planes.within(here)
        part = voxels[at]
        if self.weights is not None and weights is not None:
            self.weights.add(planes, rows, weights[at])
            part = part if self.full else part * weights[at]  # full resolution is as it is
        self.voxels.add(planes, rows, part)

    def _put_weight(self, plane: int, rows: Span, found: Array) -> None:
        """Kept until the voxels of the same rows come."""
        if not self.full:
            self.pending[plane, rows.start] = found.copy()  # sums are used again
        self._write(self.level.mask, plane, rows, found)

    def _put(self, plane: int, rows: Span, found: Array) -> None:
        if self.weights is not None and not self.full:
            found /= np.maximum(self.pending.pop((plane, rows.start)), LEAST_WEIGHT)  # an array of its own
        self._write(self.level.voxels, plane, rows, found)

    def _write(self, field: Planes | None, plane: int, rows: Span, found: Array) -> None:
        if isinstance(field, ArrayPlanes):
            field.array[0, plane - field.span.start, rows.start : rows.stop] = found
        elif field is not None:
            assert len(rows) == field.plane[0], "levels that are out of memory are made of whole planes"
            field.write(Span(plane, plane + 1), found[None, None])


def _planes(field: Planes, own: Span) -> Array:
    """Of a level: a view where it is in memory."""
    found: Array = on(CPU, field, own)[0]
    return found


def _some(levels: Sequence[Wanted]) -> list[Wanted]:
    return [one for one in levels if len(one.own)]


def _hull(spans: Sequence[Span]) -> Span:
    return Span(min(s.start for s in spans), max(s.stop for s in spans))

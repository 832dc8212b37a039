"""Images that are out of the device's memory: in the machine's, or on disk. Levels are made from them a few planes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from daskreg.comm import Communicator
from daskreg.engine.images import Array, Image, LevelPlanes, converted, is_full
from daskreg.engine.planes import Allocate, Planes, on, pieces
from daskreg.grid import Index, Sigmas, Span
from daskreg.kernels.smoothing.downsampling import downsample_table


@dataclass
class StoredImage(Image):
    """An image whose ``voxels`` and ``mask`` are empty arrays on the device: its planes are in ``full``.

    allocate: makes room for coarse levels that are out of memory too
    """

    full: LevelPlanes = field(kw_only=True)
    allocate: Allocate = field(kw_only=True)
    _opened: dict[tuple[Index, Sigmas | None, bool], LevelPlanes] = field(default_factory=dict, kw_only=True)

    def round(self) -> None:
        """Done when it was read."""

    def hold(self, *, half: bool) -> None:
        """It is held as it was read."""

    def out_of_memory(self, factors: Index, kept: bool, sigmas: Sigmas | None = None) -> bool:
        """See ``Image``."""
        return kept or is_full(factors, sigmas)

    def read(self, planes: Span) -> tuple[Array, Array | None]:
        """See ``Image``; copies, float32."""
        if not len(planes):
            return self.voxels[:0], None if self.mask is None else self.mask[:0]
        mask = None if self.full.mask is None else on(self.device, self.full.mask, planes)[0]
        return converted(on(self.device, self.full.voxels, planes)[0], False), mask

    def open(
        self, factors: Index, wanted: Sequence[Span], comm: Communicator, half: bool = False, kept: bool = False,
        sigmas: Sigmas | None = None,
    ) -> LevelPlanes:  # fmt: skip
        """See ``Image``; a level that is kept is made from the planes that this rank has, no other rank takes part."""
        if not self.out_of_memory(factors, kept, sigmas):
            return super().open(factors, wanted, comm, half, sigmas=sigmas)
        if is_full(factors, sigmas):
            return LevelPlanes(_Converted.of(self.full.voxels, half), self.full.mask)
        level, own = (factors, sigmas, half), wanted[self.rank]
        if level not in self._opened or self._opened[level].voxels.span & own != own:  # opened for fewer planes before
            self._opened = {}
            self._opened = {level: self._made(factors, own, half, sigmas)}
        return self._opened[level]

    def _made(self, factors: Index, own: Span, half: bool, sigmas: Sigmas | None) -> LevelPlanes:
        plane = self.grid.coarsen(factors).shape[1:]
        voxels = self.allocate(1, own, plane, np.uint16 if half else np.float32)
        mask = None if self.mask is None else self.allocate(1, own, plane, np.float32)
        for part in self._parts(factors, own):
            small, weight = self._part(factors, part, half, sigmas)
            voxels.write(part, small[None])
            if mask is not None and weight is not None:
                mask.write(part, weight[None])
        return LevelPlanes(voxels, mask)

    def coarse(self, factors: Index, own: Span, half: bool, sigmas: Sigmas | None = None) -> tuple[Array, Array | None]:
        """See ``Image``."""
        shape, xp = (len(own), *self.grid.coarsen(factors).shape[1:]), self.device.xp
        voxels = xp.empty(shape, np.uint16 if half else np.float32)
        mask = None if self.mask is None else xp.empty(shape, np.float32)
        for part in self._parts(factors, own):
            small, weight = self._part(factors, part, half, sigmas)
            voxels[part.within(own)] = small
            if mask is not None:
                mask[part.within(own)] = weight
        return voxels, mask

    def _parts(self, factors: Index, own: Span) -> Sequence[Span]:
        _, ny, nx = self.grid.shape
        return list(pieces(own, 4 * factors[0] * ny * nx))

    def _part(self, factors: Index, part: Span, half: bool, sigmas: Sigmas | None) -> tuple[Array, Array | None]:
        """A few planes of a level, from those that they are means of."""
        read = self._source(factors[0], part, None if sigmas is None else sigmas[0])
        voxels, mask = self.read(read)
        return Image(voxels, self.grid, self.partition, read, mask).coarse(factors, part, half, sigmas)

    def _source(self, factor: int, part: Span, sigma: float | None) -> Span:
        if factor == 1 and not sigma:
            return part
        first, table = downsample_table(self.grid.shape[0], factor, sigma)
        return Span(int(first[part.start]), int(first[part.stop - 1]) + table.shape[1]) & Span(0, self.grid.shape[0])


class _Converted:
    """Planes in another representation, to be read."""

    def __init__(self, planes: Planes, half: bool) -> None:
        self.planes, self.half = planes, half
        self.span, self.lead, self.plane = planes.span, planes.lead, planes.plane
        self.dtype = np.dtype(np.uint16 if half else np.float32)

    @classmethod
    def of(cls, planes: Planes, half: bool) -> Planes:
        """The planes themselves where they are like that."""
        return planes if half == (planes.dtype == np.uint16) else cls(planes, half)

    def read(self, planes: Span, into: Array) -> None:
        """See ``Planes``."""
        found = np.empty((self.lead, len(planes), *self.plane), self.planes.dtype)
        self.planes.read(planes, found)
        result = converted(found, self.half)
        if hasattr(into, "set"):
            into.set(result)
        else:
            into[...] = result

    def write(self, planes: Span, source: Array) -> None:
        """Replace planes."""
        self.planes.write(planes, converted(source, not self.half))

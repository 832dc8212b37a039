"""Read images that do not fit into the device's memory: archive to where their planes are kept, a few planes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskreg.comm import Communicator
from daskreg.config import Config
from daskreg.engine.background import Background, require_known
from daskreg.engine.images import LevelPlanes, converted, intensity_range, largest_weight, rescale
from daskreg.engine.planes import Allocate, Planes, on, pieces
from daskreg.engine.stored_images import StoredImage
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.device import Device
from daskreg.storage import Volume
from daskreg.storage.batches import batches, prefetched


@dataclass(frozen=True)
class StoredReader:
    """Makes images whose planes are kept in what ``allocate`` makes.

    half: as the bits of float16;  batch: planes read at once
    """

    config: Config
    comm: Communicator
    device: Device
    allocate: Allocate
    half: bool
    batch: int

    def read(
        self, name: str, volume: Volume, mask: Volume | None, background: Background | None, grid: Grid, partition: Partition,
        held: Span,
    ) -> StoredImage:  # fmt: skip
        """The planes ``held``, scaled to [0, 1], with their mask, from which stored background is taken out."""
        own = partition[self.comm.rank]
        margin = 0 if background is None else background.margin
        raw, left_out = self._copied(volume, held.grow(margin) & Span(0, volume.shape[0])), 0
        known = None if background is None else self._known(background, raw, held)
        if known is not None:
            left_out = self._leave_out(raw, known, own, held, name)
        ends = intensity_range(lambda: self._parts(raw, own), self.config, self.comm, name, left_out)
        voxels = self._scaled(raw, held, ends)
        weights = self._weights(mask, known, held, own)
        nothing = self.device.xp.empty((0, *grid.shape[1:]), np.float32)
        return StoredImage(
            nothing, grid, partition, held, None if weights is None else nothing, self.comm.rank, 0, left_out,
            full=LevelPlanes(voxels, weights), allocate=self.allocate,
        )  # fmt: skip

    def _copied(self, volume: Volume, planes: Span) -> Planes:
        """As in the archive."""
        kept = self.allocate(1, planes, volume.shape[1:], np.float32)
        for batch, found in prefetched(volume.planes, batches(planes, self.batch)):
            kept.write(batch, found[None])
        return kept

    def _scaled(self, raw: Planes, held: Span, ends: tuple[float, float]) -> Planes:
        same = not self.half and raw.span == held
        kept = raw if same else self.allocate(1, held, raw.plane, np.uint16 if self.half else np.float32)
        for planes, part in self._pieces(raw, held):
            rescale(part, ends, self.config)
            kept.write(planes, converted(part, self.half)[None])
        return kept

    def _known(self, background: Background, raw: Planes, held: Span) -> Planes:
        """Where a voxel is none of the background, 1 or 0."""
        known = self.allocate(1, held, raw.plane, np.uint8)
        for planes in self._spans(raw, held):
            around = planes.grow(background.margin) & raw.span
            found = background.known(on(self.device, raw, around)[0])[planes.within(around)]
            known.write(planes, found[None].astype(np.uint8))
        return known

    def _leave_out(self, raw: Planes, known: Planes, own: Span, held: Span, name: str) -> int:
        """As ``background.leave_out``."""
        xp, least, count = self.device.xp, math.inf, 0
        for planes, part in self._pieces(raw, own):
            seen = on(self.device, known, planes)[0] > 0
            least = min(least, float(xp.where(seen, part, np.float32(math.inf)).min()))
            count += int(seen.size - seen.sum())
        least = require_known(least, self.comm, name)
        for planes, part in self._pieces(raw, held):
            raw.write(planes, xp.where(on(self.device, known, planes)[0] > 0, part, np.float32(least))[None])
        return count

    def _weights(self, mask: Volume | None, known: Planes | None, held: Span, own: Span) -> Planes | None:
        if mask is None and known is None:
            return None
        if mask is None:
            assert known is not None
            weights = self.allocate(1, held, known.plane, np.float32)
            for planes in self._spans(weights, held):
                weights.write(planes, on(self.device, known, planes).astype(np.float32))
            return weights
        weights = self._copied(mask, held)
        if known is not None:
            for planes, part in self._pieces(weights, held):
                weights.write(planes, (part * (on(self.device, known, planes)[0] > 0))[None])
        top = largest_weight(lambda: self._parts(weights, own), f"the mask {mask.name}", self.comm)
        for planes, part in self._pieces(weights, held):
            weights.write(planes, (part / np.float32(top))[None])
        return weights

    def _parts(self, field: Planes, planes: Span) -> Iterator[Any]:
        return (part for _, part in self._pieces(field, planes))

    def _pieces(self, field: Planes, planes: Span) -> Iterator[tuple[Span, Any]]:
        """A few planes at a time, on the device."""
        return ((span, on(self.device, field, span)[0]) for span in self._spans(field, planes))

    def _spans(self, field: Planes, planes: Span) -> list[Span]:
        return list(pieces(planes, 4 * math.prod(field.plane)))

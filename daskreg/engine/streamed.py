"""The moving image where it is out of the device's memory: planes come when they are read, and go again."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskreg.engine.images import LevelPlanes
from daskreg.engine.reach import Reach
from daskreg.engine.sampler import NOTHING, Resident
from daskreg.engine.sweep.transfers import Reads, Transfers
from daskreg.errors import PlanTooLarge
from daskreg.grid import Span
from daskreg.kernels.device import Device

IMAGE, MASK = "image", "mask"
PART = 16  # planes that are on their way at once


class Streamed(Resident):
    """A window of planes that follows the planes of the level that are sampled; ``bring`` moves it.

    most: planes that it may hold, None for any number
    """

    def __init__(self, level: LevelPlanes, planes: int, device: Device, most: int | None = None) -> None:
        self.fields = {IMAGE: level.voxels} | ({} if level.mask is None else {MASK: level.mask})
        self.arrays = {name: _empty(device, field, 0) for name, field in self.fields.items()}
        super().__init__(self.arrays[IMAGE], self.arrays.get(MASK), planes)
        self.device, self.most, self.window, self.coming = device, most, NOTHING, NOTHING
        self.reach: Reach | None = None
        self.transfers = Transfers(device, self.fields, PART)

    def prepare(self, reach: Reach) -> bool:
        """What each plane of the level reads, until the next call."""
        self.reach = reach
        return True

    def bring(self, planes: Span, following: Span = NOTHING) -> None:
        """See ``Resident``. Raises PlanTooLarge where more planes are read than may be held."""
        window = self._needed(planes)
        if self.coming != window:
            self.transfers.finish()
            self.transfers.expect([self._lacking(self.window, window)])
        self._move(window)
        self.transfers.take(self._place)
        self.coming = self._needed(following) if len(following) else NOTHING
        if len(following):
            self.transfers.expect([self._lacking(window, self.coming)])

    def _needed(self, planes: Span) -> Span:
        assert self.reach is not None, "call prepare first"
        found = self.reach.read_by(planes) & Span(0, self.planes) or self.window or Span(0, 1)
        if self.most is not None and len(found) > self.most:
            raise PlanTooLarge(
                f"{len(planes)} planes of the fixed image read {len(found)} planes of the moving image, {self.most} of which fit "
                "into the memory: the map turns one image's planes into the other's lines; allow more memory, or turn the moving "
                "image first so that its first axis is nearly the fixed image's."
            )
        return found

    def _lacking(self, held: Span, wanted: Span) -> Reads:
        stays = held & wanted
        spans = [wanted] if not len(stays) else [Span(wanted.start, stays.start), Span(stays.stop, wanted.stop)]
        return {name: [s for s in spans if len(s)] for name in self.fields}

    def _move(self, window: Span) -> None:
        """Keep what stays."""
        stays, before = self.window & window, self.window
        if window == before:
            return
        for name, field in self.fields.items():
            array = _empty(self.device, field, len(window))
            if len(stays):
                array[stays.within(window)] = self.arrays[name][stays.within(before)]
            self.arrays[name] = array
        self.window, self.origin = window, window.start
        self.image, self.mask = self.arrays[IMAGE], self.arrays.get(MASK)

    def _place(self, name: str, planes: Span) -> Any:
        return self.arrays[name][None, planes.within(self.window)]


def _empty(device: Device, field: Any, planes: int) -> Any:
    return device.xp.empty((planes, *field.plane), np.dtype(field.dtype))

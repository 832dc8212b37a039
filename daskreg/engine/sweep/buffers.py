"""Buffers of a few planes that move along z with a sweep."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from daskreg.engine.copies import move_planes
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import Device

EMPTY = Span(0, 0)


class Buffer:
    """Some planes of a field, (.., planes held, Y, X), in memory that is made once.

    array: the planes ``held`` of the level, contiguous;  known: those of them that have been filled.
    """

    def __init__(
        self, device: Device, lead: tuple[int, ...], capacity: int, plane: tuple[int, int], dtype: Any = np.float32
    ) -> None:
        self.lead, self.plane = lead, plane
        self.memory = device.xp.empty(math.prod(lead) * capacity * math.prod(plane), dtype)
        self.held, self.known = EMPTY, cast(Span | None, None)
        self.array = self._view(EMPTY)

    def forget(self) -> None:
        """Nothing is known any more."""
        self.held, self.known = EMPTY, None
        self.array = self._view(EMPTY)

    def hold(self, held: Span, needed: int) -> None:
        """Hold other planes; the known ones from plane ``needed`` on stay."""
        kept = None if self.known is None else Span(min(max(needed, self.known.start), self.known.stop), self.known.stop)
        if held != self.held:
            before, after = self.array, self._view(held)
            if kept is not None and len(kept):
                _shift(before[..., kept.within(self.held), :, :], after[..., kept.within(held), :, :], self._apart(held))
            self.array, self.held = after, held
        self.known = kept

    def _apart(self, held: Span) -> int:
        """Planes that can be moved to their new place at once, 0 where none can: memory must not overlap."""
        return max(held.start - self.held.start, 0) if len(held) == len(self.held) else 0

    def part(self, planes: Span) -> Any:
        """Planes of the level, a view."""
        return self.array[..., planes.within(self.held), :, :]

    def fill(self, planes: Span) -> Any:
        """Planes that are about to be written, right behind the known ones."""
        self.known = Span(planes.start if self.known is None else self.known.start, planes.stop)
        return self.part(planes)

    def _view(self, held: Span) -> Any:
        shape = (*self.lead, len(held), *self.plane)
        return self.memory[: math.prod(shape)].reshape(shape)


def _shift(source: Any, target: Any, apart: int) -> None:
    """Copy planes within one piece of memory;  apart: planes that can be copied at once, 0 for none."""
    if not on_device(source):
        move_planes(source, target)
    elif not apart:
        target[...] = source.copy()
    else:
        for z in range(0, source.shape[-3], apart):
            target[..., z : z + apart, :, :] = source[..., z : z + apart, :, :]

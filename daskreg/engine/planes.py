"""Planes of a field, wherever they are: in memory, on a device, or on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from daskreg.engine.copies import copy_planes
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import Device, synchronise
from daskreg.kernels.page_locked import page_locked_zeros

PIECE_BYTES = 16 << 20  # of a field, copied at once


class Planes(Protocol):
    """Planes ``span`` of a level's field, (C, planes, Y, X).

    lead: C;  plane: Y and X.
    """

    span: Span
    lead: int
    plane: tuple[int, int]
    dtype: Any

    def read(self, planes: Span, into: Any) -> None:
        """Copy planes into an array (C, planes, Y, X) on any device."""

    def write(self, planes: Span, source: Any) -> None:
        """Replace planes by an array (C, planes, Y, X) on any device."""


# makes zeros: number of components, planes of the level, (Y, X), type
Allocate = Callable[[int, Span, tuple[int, int], Any], Planes]


class ArrayPlanes:
    """All of them in one array, of any device."""

    def __init__(self, array: Any, first: int) -> None:
        self.array, self.span = array, Span(first, first + array.shape[1])
        self.lead, self.plane, self.dtype = array.shape[0], array.shape[2:], array.dtype

    @classmethod
    def page_locked(cls, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> ArrayPlanes:
        """Zeros in page-locked memory, which a GPU reads and writes by itself."""
        return cls(page_locked_zeros((lead, len(span), *plane), dtype), span.start)

    @classmethod
    def zeros(cls, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> ArrayPlanes:
        """In the machine's memory."""
        return cls(np.zeros((lead, len(span), *plane), dtype), span.start)

    def read(self, planes: Span, into: Any) -> None:
        """See ``Planes``."""
        for source, target in zip(self.array[:, planes.within(self.span)], into, strict=True):  # a component is contiguous
            copy(source, target)

    def write(self, planes: Span, source: Any) -> None:
        """See ``Planes``."""
        targets = self.array[:, planes.within(self.span)]
        if not on_device(source) or on_device(targets):
            for part, target in zip(source, targets, strict=True):
                copy(part, target)
            return
        for part, target in zip(source, targets, strict=True):
            part.get(out=target, blocking=False)
        synchronise(source)  # once: a thread that waits for each may get the interpreter back late, and the link rests meanwhile


def allocator(where: str, device: Device, scratch: Allocate | None) -> Allocate:
    """What makes fields in the machine's memory (``host``) or on disk."""
    if where == "host":
        return ArrayPlanes.zeros if device.kind == "cpu" else ArrayPlanes.page_locked
    assert scratch is not None, "fields on disk need a scratch folder"
    return scratch


class ComputedPlanes:
    """Of a displacement that takes no memory: ``compute`` gives planes (3, n, Y, X) in the machine's, each time they are read."""

    lead, dtype = 3, np.dtype(np.float32)

    def __init__(self, span: Span, plane: tuple[int, int], compute: Callable[[Span], Any]) -> None:
        self.span, self.plane, self.compute = span, plane, compute

    def read(self, planes: Span, into: Any) -> None:
        """See ``Planes``."""
        for part, target in zip(self.compute(planes), into, strict=True):
            copy(part, target)

    def write(self, planes: Span, source: Any) -> None:
        """Raises TypeError."""
        raise TypeError("a computed field cannot be written to.")


def copy(source: Any, target: Any) -> None:
    """Between arrays of any devices."""
    if on_device(target) and not on_device(source):
        target.set(source)
    elif on_device(source) and not on_device(target):
        source.get(out=target)
    else:
        copy_planes(source, target)


def pieces(planes: Span, plane_bytes: int) -> Iterator[Span]:
    """Spans of a bounded number of bytes."""
    each = max(1, PIECE_BYTES // max(1, plane_bytes))
    for z in range(planes.start, planes.stop, each):
        yield Span(z, min(z + each, planes.stop))


def piecewise(field: Planes, planes: Span) -> Iterator[tuple[Span, Any]]:
    """Planes of a field in the machine's memory, a few at a time."""
    for span in pieces(planes, field.lead * int(np.prod(field.plane)) * np.dtype(field.dtype).itemsize):
        part = np.empty((field.lead, len(span), *field.plane), field.dtype)
        field.read(span, part)
        yield span, part


def at_hand(field: Planes, device: Device) -> bool:
    """Whether a field is an array in a device's memory."""
    return isinstance(field, ArrayPlanes) and on_device(field.array) == (device.kind == "cuda")


def on(device: Device, field: Planes, planes: Span) -> Any:
    """Planes of a field on a device: of an array that is there a view."""
    if isinstance(field, ArrayPlanes) and at_hand(field, device):
        return field.array[:, planes.within(field.span)]
    into = device.xp.empty((field.lead, len(planes), *field.plane), field.dtype)
    field.read(planes, into)
    return into


def zero_planes(field: Planes) -> None:
    """Set all planes to 0."""
    nothing = np.zeros((field.lead, 1, *field.plane), field.dtype)
    for z in range(field.span.start, field.span.stop):
        field.write(Span(z, z + 1), nothing)

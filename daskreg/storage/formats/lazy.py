"""Voxels of a file as a Dask array, from a function that reads a box of them.

Many files decode more at once than a box: whole strips, planes or chunks. Within ``keeping`` these pieces are kept for the next
boxes, up to a number of bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.storage.formats.streaming import SLAB_BYTES

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

Box = tuple[slice, ...]  # start and stop of every axis
Read = Callable[[Box], NDArray[Any]]


class Pieces(Protocol):
    """Keeps arrays by a key: ``lazy.byte_cache.ByteCache``."""

    def get(self, key: Hashable, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key."""


_PIECES: ContextVar[Pieces | None] = ContextVar("where decoded pieces are kept", default=None)


@contextmanager
def keeping(pieces: Pieces) -> Iterator[None]:
    """Keep what this thread decodes."""
    token = _PIECES.set(pieces)
    try:
        yield
    finally:
        _PIECES.reset(token)


class BoxVoxels:
    """An array whose boxes are read when they are asked for. read: picklable, for other processes read too.

    piece: shape of what the file decodes at once; None where any box is read as it is.
    """

    def __init__(self, read: Read, shape: Sequence[int], dtype: Any, piece: Sequence[int] | None = None) -> None:
        self.read, self.shape, self.dtype, self.ndim = read, tuple(shape), np.dtype(dtype), len(shape)
        self.piece = None if piece is None else tuple(piece)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of integers and slices."""
        parts = index if isinstance(index, tuple) else (index,)
        parts += (slice(None),) * (self.ndim - len(parts))
        spans = [
            range(*p.indices(n)) if isinstance(p, slice) else range(n)[int(p) :][:1]
            for p, n in zip(parts, self.shape, strict=True)
        ]
        box = tuple(slice(min(r), max(r) + 1) if r else slice(0, 0) for r in spans)
        steps = tuple(slice(None, None, r.step) if isinstance(p, slice) else 0 for p, r in zip(parts, spans, strict=True))
        pieces = _PIECES.get()
        found = self.read(box) if pieces is None or self.piece is None else self._assembled(box, self.piece, pieces)
        return found[steps]

    def _assembled(self, box: Box, shape: tuple[int, ...], pieces: Pieces) -> NDArray[Any]:
        """A box from whole pieces."""
        found = np.empty([s.stop - s.start for s in box], self.dtype)
        for index in itertools.product(*(range(s.start // n, -(-s.stop // n)) for s, n in zip(box, shape, strict=True))):
            whole = tuple(slice(k * n, min((k + 1) * n, end)) for k, n, end in zip(index, shape, self.shape, strict=True))
            voxels = pieces.get((id(self), index), partial(self.read, whole))
            here, there = common_part(box, whole)
            found[here] = voxels[there]
        return found


def common_part(box: Box, other: Box) -> tuple[Box, Box]:
    """What two boxes share, from the start of each."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True)]
    first, second = (
        tuple(slice(a - s.start, b - s.start) for (a, b), s in zip(shared, one, strict=True)) for one in (box, other)
    )
    return first, second


def lazy_voxels(
    read: Read, shape: Sequence[int], dtype: Any, chunks: Sequence[int], piece: Sequence[int] | None = None
) -> da.Array:
    """A Dask array over ``read``, which is given a slice an axis and returns the voxels there. piece: see ``BoxVoxels``."""
    source, nothing = BoxVoxels(read, shape, dtype, piece), np.empty((0,) * len(shape), dtype)
    voxels: da.Array = da.from_array(source, chunks=tuple(chunks), name=False, meta=nothing)
    return voxels


def slab_chunks(shape: Sequence[int], itemsize: int, axis: int = -3) -> tuple[int, ...]:
    """Chunks of whole planes of about SLAB_BYTES along ``axis``, of single entries along the axes before it."""
    axis %= len(shape)
    plane = max(1, math.prod(shape[axis + 1 :]) * itemsize)
    return (*(1 for _ in shape[:axis]), max(1, min(shape[axis], SLAB_BYTES // plane)), *shape[axis + 1 :])

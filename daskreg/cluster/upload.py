"""Voxels of an archive on their way to a GPU: decoded in their stored type into page-locked memory, and converted on the device.

The host holds three pieces at a time: one that is decoded by all cores, one that is copied, and one that waits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Region, Span
from daskreg.kernels.conversion import to_float32
from daskreg.kernels.page_locked import page_locked_zeros
from daskreg.storage import Volume
from daskreg.storage.batches import batches, prefetched

PIECE_BYTES = 64 << 20  # of stored voxels
ROOMS = 3


def upload(volume: Volume, planes: Span, voxels: Any) -> None:
    """Fill an array on the GPU, (planes, Y, X) float32, with planes of a volume that ``reads_stored``. Raises Unreadable."""
    regions = _pieces(volume, planes)
    staging = _Staging(volume.dtype, max(region.size for region in regions))
    numbered = list(enumerate(regions))

    def decode(piece: tuple[int, Region]) -> NDArray[Any]:
        room = staging.room(piece[0], piece[1].shape)
        volume.read_stored(piece[1], room)
        return room

    for (number, region), found in prefetched(decode, numbered):
        there = staging.send(number, found)
        to_float32(region.shape, region.start[0] - planes.start, region.start[1], there, voxels)
    staging.finish()


class _Staging:
    """Page-locked memory for a few pieces, and room for one on the current GPU."""

    def __init__(self, dtype: np.dtype[Any], most: int) -> None:
        import cupy

        self._cupy = cupy
        self._rooms = [page_locked_zeros((most,), dtype) for _ in range(ROOMS)]
        self._there = cupy.empty(most, dtype)
        self._sent: dict[int, Any] = {}  # an event after the copy from each room

    def room(self, number: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Host memory for a piece, after what was there has been copied."""
        if number % ROOMS in self._sent:
            self._sent[number % ROOMS].synchronize()
        return self._rooms[number % ROOMS][: math.prod(shape)].reshape(shape)

    def send(self, number: int, piece: NDArray[Any]) -> Any:
        """The piece on the GPU, once work that was queued before is done; valid until the next one is sent."""
        there = self._there[: piece.size]
        stream = self._cupy.cuda.get_current_stream()
        there.set(piece.reshape(-1), stream)
        self._sent[number % ROOMS] = stream.record()
        return there.reshape(piece.shape)

    def finish(self) -> None:
        """Until all is copied, so that host memory can be freed."""
        self._cupy.cuda.get_current_stream().synchronize()


def _pieces(volume: Volume, planes: Span) -> list[Region]:
    """Boxes of whole rows that end where chunks do along z and y."""
    depth, width = volume.shape[1:]
    assert volume.stored is not None
    chunk = volume.stored.chunk[1]
    found = []
    for batch in batches(planes):
        rows = max(1, PIECE_BYTES // (len(batch) * width * volume.dtype.itemsize) // chunk) * chunk
        found += [Region.of((batch.start, y, 0), (batch.stop, min(y + rows, depth), width)) for y in range(0, depth, rows)]
    return found

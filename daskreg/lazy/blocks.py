"""Lazy arrays computed block by block, and lazy arrays read box by box."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Region
from daskreg.storage.formats.streaming import SLAB_BYTES
from daskreg.storage.zarr.pyramid import CHUNK

EDGE = 128  # voxels an axis of a block: two chunks, and 24 MiB of displacement
KEPT = 256 << 20  # bytes up to which an image is decoded once and kept: a compressed file can only be read from its start
MANY = 8  # times SLAB_BYTES that a run of planes may be, if that saves decoding
TOGETHER = 8  # channels of a block: they share its points


def block_of(shape: tuple[int, int, int], itemsize: int = 0) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a block of the output; with ``itemsize`` (bytes a voxel) of the depth of slabs of a streamed file."""
    depth = _slab_depth(shape[1] * shape[2] * itemsize) if itemsize else EDGE
    edge = max(16, min(EDGE, math.isqrt(EDGE**3 // depth))) if depth > EDGE else EDGE
    return min(depth, shape[0]), min(edge, shape[1]), min(edge, shape[2])


def _slab_depth(plane: int) -> int:
    """Planes (of ``plane`` bytes) a slab: whole chunks of what is read where that is affordable, so each is decoded once."""
    depth = max(1, SLAB_BYTES // plane)
    return -(-depth // CHUNK) * CHUNK if plane * CHUNK <= MANY * SLAB_BYTES else depth


def by_block(compute: Callable[..., Any], shape: tuple[int, ...], dtype: Any, block: tuple[int, ...]) -> da.Array:
    """A Dask array (.., Z, Y, X) whose blocks are ``compute(region, *ranges)``, the ranges those of the leading axes."""
    chunks = da.core.normalize_chunks(block, shape, dtype=dtype)

    def _at(block_info: Any = None) -> NDArray[Any]:
        location = np.array(block_info[None]["array-location"])
        box = Region(tuple(location[-3:, 0]), tuple(location[-3:, 1]))
        return np.asarray(compute(box, *(range(a, b) for a, b in location[:-3])))

    meta = np.empty((0,) * len(shape), dtype)
    lazy: da.Array = da.map_blocks(_at, chunks=chunks, dtype=dtype, meta=meta, name=f"daskreg-{uuid4().hex}")
    return lazy


def together(lead: tuple[int, ...]) -> tuple[int, ...]:
    """How many entries of the leading axes are in one block."""
    return (*(1 for _ in lead[:-1]), min(TOGETHER, lead[-1])) if lead else ()


class Reader:
    """A lazy array that is read box by box; a small one is decoded once and kept."""

    def __init__(self, data: da.Array) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype.newbyteorder("=")
        self._whole: NDArray[Any] | None = None
        self._lock = Lock()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices, in C order. Raises Unreadable."""
        if self.data.nbytes <= KEPT:
            return np.ascontiguousarray(self._kept()[index])
        return self._decoded(self.data[index])

    def _kept(self) -> NDArray[Any]:
        with self._lock:
            if self._whole is None:
                self._whole = self._decoded(self.data)
        return self._whole

    def _decoded(self, data: da.Array) -> NDArray[Any]:
        """In this thread: the caller may be one of many threads already."""
        return np.ascontiguousarray(data.compute(scheduler="synchronous"), self.dtype)

    def __reduce__(self) -> Any:
        """Workers get the task graph, not the voxels."""
        return Reader, (self.data,)

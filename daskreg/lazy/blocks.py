"""Dask arrays that are computed block by block, and Dask arrays that are read box by box."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from daskreg import machine
from daskreg.deferred import DeferredModule
from daskreg.grid import Region
from daskreg.lazy.byte_cache import ByteCache
from daskreg.storage.formats.lazy import keeping
from daskreg.storage.formats.streaming import SLAB_BYTES
from daskreg.storage.zarr.pyramid import CHUNK

if TYPE_CHECKING:
    import dask
    import dask.array as da
else:
    dask, da = DeferredModule("dask"), DeferredModule("dask.array")

T = TypeVar("T")
EDGE = 128  # voxels an axis of a block: two chunks, and 24 MiB of displacement
LARGE_BLOCK = 1 << 24  # voxels of a block that reads much of an image
CACHED_BYTES = 256 << 20  # bytes up to which an image is decoded once and kept: a compressed file can only be read from its start
MAXIMUM_SLABS = 8  # times SLAB_BYTES that the planes of a block may take, if that saves decoding
PIECES_BYTES, PIECES_SHARE = 2 << 30, 8  # most bytes of decoded pieces of a file that are kept, and a share of the memory
CHANNELS = 8  # of a block: they share its points


def block_of(shape: tuple[int, int, int], itemsize: int = 0) -> tuple[int, int, int]:
    """Shape (z, y, x) of the blocks of an output. itemsize: bytes a voxel of a streamed file, whose slabs give the depth."""
    depth = _slab_depth(shape[1] * shape[2] * itemsize) if itemsize else EDGE
    edge = max(16, min(EDGE, math.isqrt(EDGE**3 // depth))) if depth > EDGE else EDGE
    return min(depth, shape[0]), min(edge, shape[1]), min(edge, shape[2])


def larger_block(shape: tuple[int, int, int], block: tuple[int, int, int], first: int = 0) -> tuple[int, int, int]:
    """A block that is extended to LARGE_BLOCK voxels, along x first: fewer blocks read the same of a file.

    first: axis up to which it may grow, 1 where its planes are given
    """
    edges = list(block)
    for axis in range(2, first - 1, -1):
        most = LARGE_BLOCK // math.prod(edges[:axis] + edges[axis + 1 :])
        edges[axis] = shape[axis] if most >= shape[axis] else max(most // CHUNK * CHUNK, edges[axis])
    return edges[0], edges[1], edges[2]


def _slab_depth(plane: int) -> int:
    """Planes a slab, of ``plane`` bytes each: whole chunks of the input where affordable, so that each is decoded once."""
    depth = max(1, SLAB_BYTES // plane)
    return -(-depth // CHUNK) * CHUNK if plane * CHUNK <= MAXIMUM_SLABS * SLAB_BYTES else depth


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


def compute_blocks(compute: Callable[[Region], T], region: Region, edge: int) -> list[T]:
    """``compute(box)`` for every box of at most ``edge`` voxels an axis, a task each, on the current Dask client or scheduler."""
    return compute_tasks((compute, box) for box in region.split(edge))


def compute_tasks(tasks: Iterable[tuple[Callable[[Region], T], Region]]) -> list[T]:
    """``compute(box)`` for every pair, a task each, as ``compute_blocks`` does.

    The functions are sent as they are: Dask does not look for lazy arrays within them.
    """
    # Dask does not declare the types of these two
    delayed = [dask.delayed(compute, pure=False, traverse=False)(box) for compute, box in tasks]  # type: ignore[attr-defined]
    return list(dask.compute(*delayed))  # type: ignore[attr-defined, no-untyped-call]


def leading_block(lead: tuple[int, ...]) -> tuple[int, ...]:
    """Entries of the leading axes in a block: several channels share the points that they are sampled at."""
    return (*(1 for _ in lead[:-1]), min(CHANNELS, lead[-1])) if lead else ()


class Reader:
    """A lazy array that is read box by box; a small one is decoded once and kept, of others the last pieces of their files."""

    def __init__(self, data: da.Array) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype.newbyteorder("=")
        self._whole: NDArray[Any] | None = None
        self._lock = Lock()
        self._pieces = ByteCache(min(PIECES_BYTES, machine.memory().value // PIECES_SHARE))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of basic slices, in C order. Raises Unreadable."""
        if self.data.nbytes <= CACHED_BYTES:
            return np.ascontiguousarray(self._kept()[index])
        return self._decoded(self.data[index])

    def _kept(self) -> NDArray[Any]:
        with self._lock:
            if self._whole is None:
                self._whole = self._decoded(self.data)
        return self._whole

    def _decoded(self, data: da.Array) -> NDArray[Any]:
        """In this thread: the caller may be one of many threads already."""
        with keeping(self._pieces):
            return np.ascontiguousarray(data.compute(scheduler="synchronous"), self.dtype)

    def __reduce__(self) -> Any:
        """Workers get the task graph, not the voxels."""
        return Reader, (self.data,)

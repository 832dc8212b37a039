"""Voxels of a file as a Dask array, from a function that reads a box of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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


class BoxVoxels:
    """An array whose boxes are read when they are asked for. read: picklable, for other processes read too."""

    def __init__(self, read: Read, shape: Sequence[int], dtype: Any) -> None:
        self.read, self.shape, self.dtype, self.ndim = read, tuple(shape), np.dtype(dtype), len(shape)

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
        return self.read(box)[steps]


def lazy_voxels(read: Read, shape: Sequence[int], dtype: Any, chunks: Sequence[int]) -> da.Array:
    """A Dask array over ``read``, which is given a slice an axis and returns the voxels there."""
    voxels: da.Array = da.from_array(
        BoxVoxels(read, shape, dtype), chunks=tuple(chunks), name=False, meta=np.empty((0,) * len(shape), dtype)
    )
    return voxels


def slab_chunks(shape: Sequence[int], itemsize: int, axis: int = -3) -> tuple[int, ...]:
    """Chunks of whole planes of about SLAB_BYTES along ``axis``, of single entries along the axes before it."""
    axis %= len(shape)
    plane = max(1, math.prod(shape[axis + 1 :]) * itemsize)
    return (*(1 for _ in shape[:axis]), max(1, min(shape[axis], SLAB_BYTES // plane)), *shape[axis + 1 :])

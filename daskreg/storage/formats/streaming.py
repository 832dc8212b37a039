"""Files written plane by plane: slabs are computed when they are written; compressed if the name ends in .gz."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.steps import step
from daskreg.storage.fs.address import is_remote

if TYPE_CHECKING:
    import dask.array as da
    import fsspec
else:
    da, fsspec = DeferredModule("dask.array"), DeferredModule("fsspec")

SLAB_BYTES = 32 << 20  # bytes of planes that are read or written together
GZIP_LEVEL = 4  # 9 takes five times as long and saves 2 %


def slabs(data: NDArray[Any] | da.Array) -> Iterator[NDArray[Any]]:
    """Slabs of planes (z) of an array, each computed when the loop reaches it."""
    plane = max(1, int(np.prod(data.shape[1:])) * np.dtype(data.dtype).itemsize)
    depth = max(1, SLAB_BYTES // plane)
    if isinstance(data, da.Array):
        depth = max(depth, int(data.chunksize[0]))  # whole chunks, so that each is computed once
    starts = range(0, data.shape[0], depth)
    for number, z in enumerate(starts):
        step(number, len(starts))
        slab = data[z : z + depth]
        yield slab.compute() if isinstance(slab, da.Array) else slab


@contextmanager
def open_output(path: str) -> Iterator[BinaryIO]:
    """A local or remote file to write to, compressed by gzip when its name ends in .gz."""
    with fsspec.open(path, "wb") if is_remote(path) else open(path, "wb") as raw:
        if not path.lower().endswith(".gz"):
            yield cast(BinaryIO, raw)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=GZIP_LEVEL, mtime=0) as packed:
            yield cast(BinaryIO, packed)

"""Which chunks of a Zarr array are stored. One that is missing reads as the fill value, whether it was left out or lost."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import OutputError
from daskreg.storage.fs.errors import require_regular
from daskreg.storage.fs.files import METADATA_FILES

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")

log = logging.getLogger("daskreg")
ALL_STORED: dict[str, Any] = {"daskreg": {"chunks": "all"}}  # attributes of an array that daskreg wrote with its empty chunks
MAXIMUM_COUNTED = 1_000_000  # chunks of an array that are looked for one by one: a few seconds on a local disk
Index = tuple[int, ...]


def stored_shape(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Voxels of what is stored as one object: a shard, or a chunk."""
    return array.shards or array.chunks


def object_counts(array: zarr.Array[Any]) -> tuple[int, ...]:
    """How many objects there are along each axis when all are stored."""
    return tuple(-(-n // c) for n, c in zip(array.shape, stored_shape(array), strict=True))


def objects_in(array: zarr.Array[Any], spans: Sequence[slice]) -> Iterator[Index]:
    """The objects that hold voxels of a box."""
    shape = stored_shape(array)
    if any(s.start >= s.stop for s in spans):
        return iter(())
    return product(*(range(s.start // c, -(-s.stop // c)) for s, c in zip(spans, shape, strict=True)))


def object_key(array: zarr.Array[Any], index: Index) -> str:
    """The key of an object below the array, such as ``c/0/1/2``."""
    return str(array.metadata.encode_chunk_key(index))


def is_stored(array: zarr.Array[Any], index: Index) -> bool:
    """Whether an object exists."""
    return _exists(array, object_key(array, index))


def _exists(array: zarr.Array[Any], key: str) -> bool:
    if isinstance(array.store, zarr.storage.LocalStore):
        return os.path.isfile(os.path.join(array.store.root, array.path, key))  # Zarr reads a folder as a missing chunk
    return bool(zarr.core.sync.sync(array.store.exists(f"{array.path}/{key}" if array.path else key)))


def require_files(array: zarr.Array[Any], spans: Sequence[slice]) -> None:
    """Raises Unreadable where an object of a box is a local pipe or device: reading it may never end."""
    if isinstance(array.store, zarr.storage.LocalStore):
        for index in objects_in(array, spans):
            require_regular(os.path.join(array.store.root, array.path, object_key(array, index)))


def missing_in(array: zarr.Array[Any], spans: Sequence[slice], voxels: NDArray[Any]) -> list[Index]:
    """Objects of a box that do not exist; ``voxels`` were read from it.

    An object store is only asked about those whose voxels are all the fill value: a question takes as long as reading one.
    """
    found, shape = objects_in(array, spans), [max(s.stop - s.start, 0) for s in spans]
    if not isinstance(array.store, zarr.storage.LocalStore) and voxels.size == math.prod(shape):
        voxels = voxels.reshape(shape)  # an index of one entry drops its axis
        found = (i for i in found if _is_empty(array, i, spans, voxels))
    return [i for i in found if not is_stored(array, i)]


def missing_of(array: zarr.Array[Any]) -> list[Index]:
    """Objects of the whole array that do not exist, one by one."""
    return [i for i in product(*map(range, object_counts(array))) if not is_stored(array, i)]


def describe_missing(array: zarr.Array[Any], first: Index) -> str:
    """How many objects are missing, for a message, where they are few enough to count."""
    total = math.prod(object_counts(array))
    where = f"the chunk {object_key(array, first)} is missing"
    local = isinstance(array.store, zarr.storage.LocalStore)
    if total > (MAXIMUM_COUNTED if local else MAXIMUM_COUNTED // 1000):
        return where
    return f"{where}, and {len(missing_of(array))} of {total} chunks are"


def log_missing(array: zarr.Array[Any], name: str) -> None:
    """Tell how many chunks are read as the fill value, where they are few enough to count."""
    total = math.prod(object_counts(array))
    if total > (MAXIMUM_COUNTED if isinstance(array.store, zarr.storage.LocalStore) else MAXIMUM_COUNTED // 1000):
        log.warning("%s: missing ones of its %d chunks are read as %s", name, total, array.fill_value)
    elif lost := missing_of(array):
        counted, fill = f"{len(lost)} of {total} chunks are missing (the first is {object_key(array, lost[0])})", array.fill_value
        log.warning("%s: %s, and are read as %s", name, counted, fill)


def may_lack_chunks(array: zarr.Array[Any]) -> bool:
    """Whether daskreg itself wrote the array without its empty chunks, as it did before it marked arrays that have all."""
    if "daskreg" in array.attrs or not array.path:
        return False
    try:
        group = zarr.open_group(array.store, path=array.path.rpartition("/")[0], mode="r")
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return "daskreg" in group.attrs


def require_all_stored(array: zarr.Array[Any], name: str) -> None:
    """Raises OutputError where a chunk of an array that was just written is gone, or its metadata."""
    if not any(_exists(array, name) for name in METADATA_FILES):
        raise OutputError(f"{name}: the metadata of the array is gone; somebody deletes files there: the output is not complete.")
    lost = missing_of(array)
    if lost:
        raise OutputError(
            f"{name}: {len(lost)} of {math.prod(object_counts(array))} chunks that were written are gone, the first is "
            f"{object_key(array, lost[0])}; somebody deletes files there: the output is not complete."
        )


def _is_empty(array: zarr.Array[Any], index: Index, spans: Sequence[slice], voxels: NDArray[Any]) -> bool:
    box = tuple(
        slice(max(i * c - s.start, 0), min((i + 1) * c, s.stop) - s.start)
        for i, c, s in zip(index, stored_shape(array), spans, strict=True)
    )
    fill = array.fill_value
    part = voxels[box]
    return bool((part == (0 if fill is None else fill)).all() or (part.dtype.kind == "f" and np.isnan(part).all()))

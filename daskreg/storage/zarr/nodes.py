"""Zarr arrays and groups, opened and read lazily; errors name the chunk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import NotFound, Unreadable
from daskreg.storage.fs.address import is_remote, split_zip
from daskreg.storage.fs.claims import require_memory
from daskreg.storage.fs.errors import open_errors, read_errors, reason, require_exists, require_regular
from daskreg.storage.fs.files import METADATA_FILES
from daskreg.storage.zarr.chunks import describe_missing, log_missing, may_lack_chunks, missing_in, require_files

if TYPE_CHECKING:
    import dask.array as da
    import zarr

    from daskreg.storage.zarr import codecs, remote, zips
else:
    da, zarr = DeferredModule("dask.array"), DeferredModule("zarr")
    codecs = DeferredModule("daskreg.storage.zarr.codecs")
    remote, zips = DeferredModule("daskreg.storage.zarr.remote"), DeferredModule("daskreg.storage.zarr.zips")

MISSING_CHUNKS: ContextVar[str] = ContextVar("missing chunks", default="error")  # of arrays that are opened: error or fill
MAX_DASK_CHUNK = 128 << 20  # bytes; larger shards are read in parts
MAX_CHUNKS = 1 << 20  # along one axis
SHOWN = 6  # names in a sentence
MIN_DASK_CHUNK = 4 << 20  # bytes; smaller chunks are read together, which keeps graphs small


@contextmanager
def missing_chunks(choice: str | None) -> Iterator[None]:
    """What missing chunks are in arrays that are opened in this block: an error (None), or the fill value ("fill")."""
    token = MISSING_CHUNKS.set(choice or "error")
    try:
        yield
    finally:
        MISSING_CHUNKS.reset(token)


def open_node(path: str) -> zarr.Array[Any] | zarr.Group:
    """The Zarr array or group at a path.

    Raises NotFound, and Unreadable for what is no Zarr store or may not be read.
    """
    packed, inner = split_zip(path)
    if packed:
        with open_errors(path):
            return zips.open_zipped(packed, inner)
    require_exists(path)
    if not is_remote(path) and os.path.isdir(path):
        _require_metadata(path)
    elif not is_remote(path):
        raise Unreadable(f"{path} is a file; a Zarr store, a folder, a .zip or an .ozx file, was expected.")
    with open_errors(path):  # workers may have another working directory
        return remote.open_remote(path) if is_remote(path) else zarr.open(os.path.abspath(path), mode="r")


def attributes(node: zarr.Array[Any] | zarr.Group) -> dict[str, Any]:
    """The attributes as plain JSON."""
    return dict(node.attrs)


class CheckedArray:
    """A Zarr array whose reads raise Unreadable where a chunk is damaged or missing, with its indices or its key."""

    def __init__(self, array: zarr.Array[Any], name: str, sparse: bool = False) -> None:
        """name: for errors;  sparse: missing chunks are the fill value."""
        self.array, self.name, self.sparse = array, name, sparse
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Decode the voxels of basic slices. Raises Unreadable."""
        return self._checked(index, lambda: np.asarray(self.array[index]))

    def read(self, box: Sequence[slice], out: NDArray[Any]) -> None:
        """Decode a box into an array of its shape, with little to do in Python for each chunk. Raises Unreadable."""

        def decode() -> NDArray[Any]:
            if not codecs.decode_box(self.array, box, out):
                out[...] = np.asarray(self.array[tuple(box)])
            return out

        self._checked(tuple(box), decode)

    def _checked(self, index: Any, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        require_files(self.array, _spans(index, self.shape))
        try:
            voxels = decode()
        except MemoryError:
            raise
        except Exception as error:
            where = " ".join(f"{s.start}:{s.stop}" for s in self._damaged(index))
            raise Unreadable(f"{self.name}: the chunk at {where} is damaged: {reason(error)}; restore it.") from error
        if not self.sparse:
            self._require_stored(index, voxels)
        return voxels

    def _require_stored(self, index: Any, voxels: NDArray[Any]) -> None:
        """Raises Unreadable where a chunk that was read does not exist. Afterwards, so that it existed while it was read."""
        missing = missing_in(self.array, _spans(index, self.shape), voxels)
        if missing and may_lack_chunks(self.array):
            self.sparse = True
        elif missing:
            fill = 0 if self.array.fill_value is None else self.array.fill_value
            raise Unreadable(
                f"{self.name}: {describe_missing(self.array, missing[0])}; it would be read as {fill}. Restore it or, if the "
                "store was written without its empty chunks, say so behind its address: '::missing=fill'."
            )

    def _damaged(self, index: Any) -> Sequence[slice]:
        """The first chunk inside ``index`` that cannot be read, all of ``index`` when each chunk can."""
        spans = _spans(index, self.shape)
        for box in product(*(_within(s, c) for s, c in zip(spans, self.array.chunks, strict=True))):
            try:
                _ = self.array[box]
            except Exception:  # noqa: BLE001 - the caller raises it, with these indices
                return box
        return spans


def checked_array(array: zarr.Array[Any], name: str) -> CheckedArray:
    """A Zarr array that is read by the fastest codecs there are. Raises Unreadable for what cannot be an image's voxels."""
    check_dtype(array.dtype, name)
    _require_plausible(array, name)
    sparse = MISSING_CHUNKS.get() == "fill"
    if sparse:
        log_missing(array, name)
    return CheckedArray(codecs.with_zarrs_codecs(array), name, sparse)


def lazy_array(array: zarr.Array[Any] | CheckedArray, name: str) -> da.Array:
    """A Dask array over a Zarr array: a Dask chunk per shard, or several whole chunks (``dask_chunks``)."""
    source = array if isinstance(array, CheckedArray) else checked_array(array, name)
    stored, meta = source.array, np.empty((0,) * source.ndim, source.dtype)
    chunks = dask_chunks(stored.shape, stored.chunks, stored.shards, stored.dtype.itemsize)
    voxels: da.Array = da.from_array(source, chunks=chunks, name=False, meta=meta)
    return voxels


def _require_plausible(array: zarr.Array[Any], name: str) -> None:
    """Raises Unreadable for shapes and chunks that no array has: they would take forever, or all memory."""
    for shape in (array.shape, array.chunks, array.shards or array.chunks):
        if any(n < 1 for n in shape):
            raise Unreadable(
                f"{name}: its metadata states the shape {array.shape} in chunks of {array.shards or array.chunks}; positive "
                "numbers were expected: repair it."
            )
    most = max(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    if most > MAX_CHUNKS:
        raise Unreadable(f"{name}: its metadata states the shape {array.shape}, {most} chunks along one axis; it may be damaged.")
    require_memory(name, math.prod(array.chunks) * array.dtype.itemsize)


def dask_chunks(shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int] | None, itemsize: int) -> tuple[int, ...]:
    """Multiples of the stored chunks, between MIN_DASK_CHUNK and MAX_DASK_CHUNK bytes where that is possible."""
    if shards is not None and math.prod(shards) * itemsize <= MAX_DASK_CHUNK:
        chunks = shards
    length = [min(c, n) if n else 1 for c, n in zip(chunks, shape, strict=True)]
    whole = list(shards) if shards is not None else list(shape)
    for axis in reversed(range(len(length))):
        while math.prod(length) * itemsize < MIN_DASK_CHUNK and length[axis] < min(whole[axis], shape[axis]):
            length[axis] = min(2 * length[axis], whole[axis], shape[axis])
    return tuple(length)


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raises Unreadable unless voxels are real numbers or booleans of at most 8 bytes."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise Unreadable(f"{name} holds {dtype} voxels; real numbers were expected: convert it first.")


def open_member(group: zarr.Group, inner: str, name: str) -> zarr.Array[Any]:
    """The array at a path in a group. Raises NotFound and Unreadable."""
    if isinstance(group.store, zarr.storage.LocalStore):
        _require_metadata_files(os.path.join(group.store.root, group.path, inner))
    try:
        with read_errors(name):
            node = group[inner]
    except (NotFound, KeyError) as error:
        raise NotFound(f"{name} has no array {inner!r}, which its metadata promises.") from error
    except Unreadable as error:
        if isinstance(error.__cause__, KeyError):
            raise NotFound(f"{name} has no array {inner!r}, which its metadata promises.") from error
        raise
    if not isinstance(node, zarr.Array):
        raise Unreadable(f"{name}: {inner!r} is a group; an array was expected.")
    return node


def dimension_names(array: zarr.Array[Any]) -> Sequence[str | None] | None:
    """Names of the axes, as in Zarr v3 or as xarray writes them."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return names if isinstance(names, list | tuple) else None


def children(group: zarr.Group) -> Mapping[str, zarr.Array[Any] | zarr.Group]:
    """Direct members; empty for a store without listing."""
    try:
        return dict(group.members())
    except (OSError, NotImplementedError, ValueError):
        return {}


def _require_metadata(path: str) -> None:
    with read_errors(path):
        found = set(os.listdir(path))
    if not found & set(METADATA_FILES):
        names = ", ".join(METADATA_FILES)
        raise Unreadable(
            f"{path} is a folder without Zarr metadata ({names}); a Zarr store was expected{_what_is_in(path, found)}."
        )
    _require_metadata_files(path)


def _what_is_in(path: str, names: set[str]) -> str:
    """The end of a sentence about a folder that is no image: what is in it, which may be meant."""
    visible = sorted(n for n in names if not n.startswith("."))
    if not visible:
        return ""
    more = f" and {len(visible) - SHOWN} more" if len(visible) > SHOWN else ""
    return f"; it has {', '.join(visible[:SHOWN])}{more}: name one of them, as {os.path.join(path, visible[0])}"


def _require_metadata_files(path: str) -> None:
    for name in METADATA_FILES:
        require_regular(os.path.join(path, name))


def _spans(index: Any, shape: Sequence[int]) -> list[slice]:
    """Basic indexing as a slice per axis."""
    parts = index if isinstance(index, tuple) else (index,)
    parts += (slice(None),) * (len(shape) - len(parts))
    return [
        slice(*p.indices(n)[:2]) if isinstance(p, slice) else slice(int(p), int(p) + 1) for p, n in zip(parts, shape, strict=True)
    ]


def _within(span: slice, chunk: int) -> list[slice]:
    """A slice divided at chunk boundaries."""
    starts = range(span.start // chunk * chunk, span.stop, chunk)
    return [slice(max(a, span.start), min(a + chunk, span.stop)) for a in starts]

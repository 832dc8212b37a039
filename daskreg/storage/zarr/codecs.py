"""The codec pipeline of zarrs, which codes many chunks at once without the GIL; zarr-python codes one after another.

Unlike zarr-python it does not write a chunk under a temporary name first: daskreg writes each chunk once, into a store that
is not valid before it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore
from zarrs import _internal
from zarrs.pipeline import ZarrsCodecPipeline, get_codec_pipeline_impl

from daskreg.storage.zarr.chunks import is_stored, object_key, objects_in, stored_shape

_FORKED = [False]  # the threads of zarrs do not exist in a forked child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _FORKED.__setitem__(0, True))


class ZarrsPipeline(ZarrsCodecPipeline):
    """zarrs, or the array's own pipeline in a forked process, where an axis is dropped, and for a read-only store."""

    empty: bytes | None = None  # a chunk of the fill value alone, as it is stored, once one has been

    def __getstate__(self) -> Any:
        return {"metadata": self.metadata, "store": self.store, "plain": self.python_impl}

    def __setstate__(self, state: Any) -> None:
        self.metadata, self.store, self.python_impl = state["metadata"], state["store"], state["plain"]
        self.impl = get_codec_pipeline_impl(self.metadata, self.store, strict=True)

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """As Zarr's pipeline."""
        if _FORKED[0] or drop_axes:  # zarrs fails for dropped axes across several shards
            await self._plain.read(batch_info, out, drop_axes)
        else:
            await super().read(batch_info, out, drop_axes)

    async def write(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """As Zarr's pipeline; zarrs leaves out chunks that are empty whatever it is told, which Zarr's writes afterwards."""
        chunks = list(batch_info)
        if _FORKED[0] or self.store.read_only:
            await self._plain.write(chunks, value, drop_axes)
            return
        root = cast(LocalStore, self.store).root
        await super().write(chunks, value, drop_axes)
        left_out = [c for c in chunks if c[1].config.write_empty_chunks and not os.path.exists(root / c[0].path)]
        if left_out:
            await self._plain.write(left_out[:1], value, drop_axes)
            first, *others = (root / chunk[0].path for chunk in left_out)
            _write_all(first.read_bytes(), others)

    @property
    def _plain(self) -> Any:
        return self.python_impl


def with_zarrs_codecs(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array with zarrs' pipeline where zarrs supports its store, memory order, type and codecs; empty chunks are written."""
    array = array.with_config({"write_empty_chunks": True})  # so that one that is missing is known to be lost
    fortran = getattr(array.metadata, "order", "C") == "F"
    if not isinstance(array.store, LocalStore) or not array.dtype.isnative or fortran:
        return array
    try:
        coder = get_codec_pipeline_impl(array.metadata, array.store, strict=True)
    except Exception:  # noqa: BLE001  # zarrs raises several types for what it does not support
        return array
    fast = array.with_config({"order": "C"})  # of arrays read, whatever the process is configured to
    plain: Any = array.async_array.codec_pipeline
    pipeline = ZarrsPipeline(array.metadata, array.store, coder, plain)
    object.__setattr__(fast.async_array, "codec_pipeline", pipeline)
    return fast


def decode_box(array: zarr.Array[Any], box: Sequence[slice], out: NDArray[Any]) -> bool:
    """Decode a box straight into an array of its shape: one call for all chunks, on all cores, without the GIL.

    False, with nothing done, where zarrs does not read the array, or ``out`` is of another type or not in C order.
    """
    coder = _coder(array, out)
    if coder is not None:
        coder.retrieve_chunks_and_apply_index(_items(array, box, out), out)
    return coder is not None


def encode_box(array: zarr.Array[Any], box: Sequence[slice], voxels: NDArray[Any]) -> bool:
    """Encode and write whole chunks, as ``decode_box`` reads them."""
    coder = None if array.store.read_only else _coder(array, voxels)
    if coder is None:
        return False
    coder.store_chunks_with_indices(_items(array, box, voxels), voxels, True)
    left_out = [index for index in objects_in(array, box) if not is_stored(array, index)]  # zarrs leaves out empty chunks
    folder = cast(LocalStore, array.store).root / array.path
    targets = [folder / object_key(array, index) for index in left_out]
    pipeline: Any = array.async_array.codec_pipeline
    if targets and pipeline.empty is None:
        _, part, there = _part(left_out[0], stored_shape(array), box)
        array[part] = voxels[there]
        pipeline.empty = targets.pop(0).read_bytes()
    _write_all(pipeline.empty, targets)
    return True


def _write_all(content: bytes, targets: Sequence[Path]) -> None:
    """Write the same bytes: empty chunks are encoded alike, also at the far edge, where a chunk is stored as a whole."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _coder(array: zarr.Array[Any], voxels: NDArray[Any]) -> Any:
    pipeline: Any = array.async_array.codec_pipeline
    usable = isinstance(pipeline, ZarrsPipeline) and not _FORKED[0]
    return pipeline.impl if usable and voxels.dtype == array.dtype and voxels.flags.c_contiguous else None


def _items(array: zarr.Array[Any], box: Sequence[slice], voxels: NDArray[Any]) -> list[Any]:
    """What zarrs needs for each chunk: its key, the part of it, and where that is in ``voxels``."""
    size, prefix, items = stored_shape(array), f"{array.path}/" if array.path else "", []
    for index in objects_in(array, box):
        inside, _, there = _part(index, size, box)
        key, shape = prefix + object_key(array, index), list(voxels.shape)
        items.append(
            _internal.ChunkItem(key=key, chunk_subset=list(inside), chunk_shape=list(size), subset=list(there), shape=shape)
        )
    return items


def _part(index: Sequence[int], size: Sequence[int], box: Sequence[slice]) -> tuple[tuple[slice, ...], ...]:
    """The part of a chunk in a box: within the chunk, in the array, and within the box."""
    starts = [i * n for i, n in zip(index, size, strict=True)]
    ends = [(max(a, s.start), min(a + n, s.stop)) for a, n, s in zip(starts, size, box, strict=True)]
    inside = tuple(slice(lo - a, hi - a) for (lo, hi), a in zip(ends, starts, strict=True))
    return (
        inside,
        tuple(slice(*e) for e in ends),
        tuple(slice(lo - s.start, hi - s.start) for (lo, hi), s in zip(ends, box, strict=True)),
    )

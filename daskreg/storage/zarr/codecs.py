"""The codec pipeline of zarrs, which codes many chunks at once without the GIL; zarr-python codes one after another.

Unlike zarr-python it does not write a chunk under a temporary name first: daskreg writes each chunk once, into a store that
is not valid before it is complete.
"""

from __future__ import annotations

import os
from typing import Any, cast

import zarr
from zarr.storage import LocalStore
from zarrs.pipeline import ZarrsCodecPipeline, get_codec_pipeline_impl

_FORKED = [False]  # the threads of zarrs do not exist in a forked child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _FORKED.__setitem__(0, True))


class ZarrsPipeline(ZarrsCodecPipeline):
    """zarrs, or the array's own pipeline in a forked process, where an axis is dropped, and for a read-only store."""

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
            await self._plain.write(left_out, value, drop_axes)

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

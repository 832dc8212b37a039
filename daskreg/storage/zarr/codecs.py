"""Chunks coded by zarrs: many at once and without Python's lock, where zarr-python hands one after another to a thread.

Unlike zarr-python it writes a chunk where it is, not beside it: daskreg writes each chunk once, into a store that does not count
before it is complete.
"""

from __future__ import annotations

import os
from typing import Any

import zarr
from zarr.storage import LocalStore
from zarrs.pipeline import ZarrsCodecPipeline, get_codec_pipeline_impl

_FORKED = [False]  # zarrs' threads stay behind in the parent
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _FORKED.__setitem__(0, True))


class ZarrsPipeline(ZarrsCodecPipeline):
    """zarrs, but the array's own way in a forked process, where an axis is dropped, and to refuse what may not be written."""

    def __getstate__(self) -> Any:
        return {"metadata": self.metadata, "store": self.store, "plain": self.python_impl}

    def __setstate__(self, state: Any) -> None:
        self.metadata, self.store, self.python_impl = state["metadata"], state["store"], state["plain"]
        self.impl = get_codec_pipeline_impl(self.metadata, self.store, strict=True)

    async def read(self, batch_info: Any, out: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """As Zarr's pipeline."""
        if _FORKED[0] or drop_axes:  # zarrs loses its way where that meets several shards
            await self._plain.read(batch_info, out, drop_axes)
        else:
            await super().read(batch_info, out, drop_axes)

    async def write(self, batch_info: Any, value: Any, drop_axes: tuple[int, ...] = ()) -> None:
        """As Zarr's pipeline."""
        if _FORKED[0] or self.store.read_only:
            await self._plain.write(batch_info, value, drop_axes)
        else:
            await super().write(batch_info, value, drop_axes)

    @property
    def _plain(self) -> Any:
        return self.python_impl


def with_zarrs_codecs(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, coded by zarrs; as it is where that does not know its store, order, type or codecs."""
    fortran = getattr(array.metadata, "order", "C") == "F"
    if not isinstance(array.store, LocalStore) or not array.dtype.isnative or fortran:
        return array
    try:
        coder = get_codec_pipeline_impl(array.metadata, array.store, strict=True)
    except Exception:  # noqa: BLE001  # whatever it says of what it does not know
        return array
    found = array.with_config({"order": "C"})  # of what is read, whatever the process prefers
    plain: Any = array.async_array.codec_pipeline
    pipeline = ZarrsPipeline(array.metadata, array.store, coder, plain)
    object.__setattr__(found.async_array, "codec_pipeline", pipeline)
    return found

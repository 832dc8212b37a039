"""Chunks coded by zarrs: many at once and without Python's lock, where zarr-python hands one after another to a thread."""

from __future__ import annotations

from threading import Lock
from typing import Any

import zarr
from zarr.storage import LocalStore

_LOCK = Lock()  # Zarr's configuration is the process's
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


def quick(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, coded by zarrs; as it is where that does not know its store, type or codecs."""
    if not isinstance(array.store, LocalStore) or not array.dtype.isnative:
        return array
    try:
        with _LOCK, zarr.config.set(ZARRS):
            with zarr.config.set({"codec_pipeline.strict": True}):
                array.with_config({})  # raises where it would warn and do without
            return array.with_config({})
    except Exception:  # noqa: BLE001  # whatever it says of what it does not know, and where it is not installed
        return array

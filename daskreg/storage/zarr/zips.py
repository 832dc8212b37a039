"""Zarr stores in one zip file (``.zarr.zip``, ``.ozx``), on a local disk or behind a URL."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from typing import Any

import zarr
from zarr.storage import ZipStore

from daskreg.errors import Unreadable
from daskreg.storage.fs.address import is_remote, join
from daskreg.storage.fs.errors import require_exists
from daskreg.storage.fs.files import METADATA_FILES, remote_file_system

SHOWN = 12  # names in a sentence


def open_zipped(packed: str, inner: str) -> zarr.Array[Any] | zarr.Group:
    """The array or group in a zip file. Raises Unreadable, and what the file system and Zarr raise."""
    require_exists(packed)
    where = _place(packed, inner, _names(packed))
    try:
        if is_remote(packed):
            return zarr.open(f"zip://{where}::{packed}", mode="r")
        return zarr.open(ZipStore(os.path.abspath(packed), mode="r"), path=where, mode="r")
    except FileNotFoundError as error:
        raise Unreadable(f"{join(packed, inner)}: the zip file has no Zarr array or group there; list it: unzip -l.") from error


def _names(packed: str) -> set[str]:
    if is_remote(packed):
        system, _ = remote_file_system(f"zip::{packed}")
        return set(system.find(""))
    with zipfile.ZipFile(packed) as file:
        return set(file.namelist())


def _place(packed: str, inner: str, names: Collection[str]) -> str:
    """The path from the top of the file: a store that was packed with its folder begins below it. Raises Unreadable."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if any(name in names for name in METADATA_FILES) or inner.partition("/")[0] in folders:
        return inner
    stores = sorted(f for f in folders if any(f"{f}/{name}" in names for name in METADATA_FILES))
    if len(stores) > 1:
        listed = ", ".join(stores[:SHOWN]) + ", .." * (len(stores) > SHOWN)
        raise Unreadable(f"{packed} holds several Zarr stores; choose one with '::array={stores[0]}' (there are {listed}).")
    if not stores:
        raise Unreadable(
            f"{packed} is a zip file without Zarr metadata ({', '.join(METADATA_FILES)}) at its top; a Zarr store was expected."
        )
    return f"{stores[0]}/{inner}".strip("/")

"""Zarr stores behind URLs, also of servers that refuse what they do not have."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore

from daskreg.storage.fs.errors import is_forbidden


class UnlistedStore(FsspecStore):
    """A store whose server answers 403 for keys that do not exist, as S3 does where listing is not permitted."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As FsspecStore; None too for what the server refuses."""
        try:
            return await super().get(key, prototype, byte_range)
        except Exception as error:
            if is_forbidden(error):
                return None
            raise

    async def exists(self, key: str) -> bool:
        """As FsspecStore; False too for what the server refuses."""
        try:
            return await super().exists(key)
        except Exception as error:
            if is_forbidden(error):
                return False
            raise


def open_remote(url: str) -> zarr.Array[Any] | zarr.Group:
    """The array or group at a URL. Raises what the file system and Zarr raise; a refusal, where the server refuses all of it."""
    try:
        return zarr.open(url, mode="r")
    except Exception as error:
        if not is_forbidden(error):
            raise
        try:
            return zarr.open(UnlistedStore.from_url(url, read_only=True), mode="r")
        except FileNotFoundError:
            raise error from None

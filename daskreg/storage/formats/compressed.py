"""Files that may be compressed by gzip: read from their start, and checked to their end."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.storage.fs.address import is_remote
from daskreg.storage.fs.errors import reason

if TYPE_CHECKING:
    import fsspec
else:
    fsspec = DeferredModule("fsspec")

GZIP = b"\x1f\x8b"  # the first bytes of a compressed file
PART = 1 << 20  # bytes that are decompressed together on the way to the end
_checked: dict[str, Any] = {}  # state of each file of which this process has read all, with its checksum


def is_compressed(path: str) -> bool:
    """Whether the name says that a file is compressed."""
    return path.lower().endswith((".gz", ".mgz"))


@contextmanager
def opened(path: str, *, check: bool = True) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a local or remote file.

    check: when the block ends, read on to the end of a compressed file and compare its length and checksum with those stored,
    once in a process for each state of the file.
    Raises Unreadable for a damaged file, and for one whose name does not say whether it is compressed.
    """
    with fsspec.open(path, "rb") if is_remote(path) else open(path, "rb") as raw:
        _require_truthful_name(path, raw.read(len(GZIP)))
        raw.seek(0)
        if not is_compressed(path):
            yield cast(BinaryIO, raw)
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            try:
                yield cast(BinaryIO, unpacked)
                if check:
                    _read_to_end(path, unpacked)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise Unreadable(f"{path} is cut short or damaged: {reason(error)}; copy it again.") from error


def _require_truthful_name(path: str, start: bytes) -> None:
    if is_compressed(path) and start and start != GZIP:
        raise Unreadable(f"{path} is not compressed, although its name ends in {path[-3:]}: rename it to {_plain_name(path)}.")
    if not is_compressed(path) and start == GZIP:
        raise Unreadable(f"{path} is compressed, although its name does not end in .gz: rename it to {path}.gz.")


def _plain_name(path: str) -> str:
    return f"{path[:-1]}h" if path.lower().endswith(".mgz") else path[:-3]


def _read_to_end(path: str, unpacked: gzip.GzipFile) -> None:
    """To the end of the file, where gzip compares length and checksum."""
    state = _state(path)
    if _checked.get(path) != state:
        while unpacked.read(PART):
            pass
        _checked[path] = state


def check_stream(name: str, path: str, offset: int, length: int) -> None:
    """Decompress what is behind ``offset`` of a local file, by zlib or gzip, and compare its checksum, and its length in bytes.

    Once in a process for each state of the file. name: for errors. Raises Unreadable.
    """
    state = _state(path)
    if _checked.get(path) == state:
        return
    found, stream = 0, zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # either kind
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            while not stream.eof and (part := stream.unconsumed_tail or file.read(PART)):
                found += len(stream.decompress(part, PART))
        except zlib.error as error:
            raise Unreadable(f"{name} is damaged: {reason(error)}; copy it again.") from error
    if not stream.eof or found != length:
        raise Unreadable(
            f"{name} is cut short or damaged: it has {found} bytes of voxels, its header promises {length}; copy it again."
        )
    _checked[path] = state


def _state(path: str) -> Any:
    """What changes when a file is replaced."""
    if is_remote(path):
        system, inner = fsspec.core.url_to_fs(path)
        return system.ukey(inner)
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino

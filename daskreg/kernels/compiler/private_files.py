"""Files of compiled kernels in a folder that nobody else can write to.

A compiled kernel is code: whoever can write the file can execute what he likes as the user who loads it. Only folders and files
of this user, or of root, are read, and only if nobody else may write to them. A file holds a digest of its name and its content,
so that a damaged or renamed one is compiled again, before anything interprets it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)
MAGIC = b"daskreg kernel 1\n"
DIGEST_BYTES = 32
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class NotPrivate(OSError):
    """A folder or a file of somebody else, or one that somebody else may change."""


def prepare(folder: Path) -> None:
    """Make a folder for this user alone, or check that it is one; an own folder that others may write to is closed to them.

    Raises OSError, NotPrivate after a warning.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(folder) as handle:
        if os.fstat(handle).st_uid != os.geteuid():
            _refuse(f"the kernel cache {folder} belongs to another user")


def write(path: Path, data: bytes, most: int) -> None:
    """Write a file that appears whole, and delete the least recently used ones beyond ``most``. Raises OSError."""
    prepare(path.parent)
    with NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
        try:
            file.write(MAGIC + _digest(path, data) + data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    with suppress(OSError):  # other processes do the same
        found = [*path.parent.glob(f"*{path.suffix}"), *path.parent.glob("*.pickle")]  # as earlier versions named them
        for old in sorted(found, key=lambda p: p.stat().st_mtime)[:-most]:
            old.unlink()


def read(path: Path) -> bytes:
    """Read a file and mark it as used.

    Raises FileNotFoundError, NotPrivate after a warning, and ValueError for a damaged file.
    """
    with _opened(path.parent) as folder:
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or not _trusted(found) or found.st_mode & OTHERS_WRITE:
                _refuse(f"the kernel cache has a file {path} that other users can change")
            content = file.read()
            with suppress(OSError):  # of root
                os.utime(handle)
    start = len(MAGIC) + DIGEST_BYTES
    data = content[start:]
    if content[:start] != MAGIC + _digest(path, data):
        raise ValueError("the file is damaged")
    return data


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A folder's descriptor, once it is known that only this user or root can write to it."""
    handle = os.open(folder, DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not _trusted(found):
            _refuse(f"the kernel cache {folder} belongs to another user")
        if found.st_mode & OTHERS_WRITE:
            if found.st_uid != os.geteuid():
                _refuse(f"other users can write to the kernel cache {folder}")
            os.fchmod(handle, stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
        yield handle
    finally:
        os.close(handle)


def _trusted(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _digest(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + data).digest()


def _refuse(reason: str) -> None:
    _warn(reason)
    raise NotPrivate(reason)


@cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    log.warning(
        "%s: it is not used, and kernels are compiled again; remove it, or set NUMBA_CACHE_DIR to a folder of yours, and "
        "DASKREG_KERNEL_CACHE to one of yours or root's.",
        reason,
    )

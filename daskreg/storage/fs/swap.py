"""Put a complete output in the place of an older one, or where nothing is, without a moment in which neither can be read."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Any
from uuid import uuid4

from daskreg.storage.fs.address import is_remote, join
from daskreg.storage.fs.files import METADATA_FILES, exists, hidden_sibling, remote_file_system, remove

Version = list[Any]  # JSON
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
AT_FDCWD = -100  # of Linux: paths are relative to the working directory
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # of Linux
RENAME_SWAP, RENAME_EXCL = 2, 4  # the same two of macOS


def version_of(path: str) -> Version | None:
    """What tells an output from one that is written in its place later: sizes and times of the file, or of a store's metadata.

    None where nothing is. Inode numbers do not count: some network file systems make them up.
    """
    if not exists(path):
        return None
    if is_remote(path):
        return [[name, *_remote_version(join(path, name) if name else path)] for name in ("", *METADATA_FILES)]
    files = [(name, join(path, name)) for name in METADATA_FILES] if os.path.isdir(path) else [("", path)]
    found = [(name, _status(file)) for name, file in files]
    return [[name, status.st_size, status.st_mtime_ns] for name, status in found if status is not None]


def replace(new: str, target: str) -> None:
    """Put ``new`` in the place of ``target``, which exists, and delete what was there."""
    if is_remote(target):
        _replace_remote(new, target)
    elif not os.path.isdir(target):
        os.replace(new, target)
    elif _rename(new, target, exchange=True):
        old = hidden_sibling(target, f"old-{uuid4().hex[:8]}")
        os.rename(new, old)  # under this name it is never taken for a new one
        remove(old)
    else:
        _replace_in_two_steps(new, target)


def put_new(new: str, target: str) -> None:
    """Put ``new`` at ``target``. Raises FileExistsError where something is by now."""
    if is_remote(target):
        if exists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        _replace_remote(new, target)
    elif not _rename(new, target, exchange=False):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        os.rename(new, target)


def _replace_in_two_steps(new: str, target: str) -> None:
    """On a file system that cannot exchange two folders (NFS): between two renames neither is at ``target``.

    If it ends between them, ``finish_replacing`` completes it.
    """
    old = hidden_sibling(target, f"old-{uuid4().hex[:8]}")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:  # Ctrl-C between the two
        if not os.path.lexists(target):
            os.rename(old, target)
        raise
    remove(old)


def _rename(a: str, b: str, *, exchange: bool) -> bool:
    """Exchange two paths, or rename a to b where nothing is, each in one step; False where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            code = library.renamex_np(os.fsencode(a), os.fsencode(b), RENAME_SWAP if exchange else RENAME_EXCL)
        else:
            flag = RENAME_EXCHANGE if exchange else RENAME_NOREPLACE
            code = library.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), ctypes.c_uint(flag))
    except AttributeError:  # an old C library
        return False
    number = ctypes.get_errno()
    if code and number not in UNSUPPORTED:
        raise OSError(number, os.strerror(number), b)
    return not code


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _remote_version(path: str) -> list[str | int | None]:
    system, inner = remote_file_system(path)
    if not system.isfile(inner):
        return [None]
    system.invalidate_cache(inner)
    known = system.info(inner)
    stamp = next((known[k] for k in ("ETag", "etag", "LastModified", "mtime", "created") if known.get(k) is not None), None)
    return [known.get("size"), None if stamp is None else str(stamp)]


def _replace_remote(new: str, target: str) -> None:
    """An object store cannot rename: copy there, the metadata of the root last, without which the copy is no store."""
    system, source = remote_file_system(new)
    _, place = remote_file_system(target)
    if system.isfile(source):
        system.mv(source, place)
        return
    for name in METADATA_FILES:
        remove(join(target, name))
    remove(target)
    found = [name.removeprefix(source.rstrip("/") + "/") for name in system.find(source)]
    for names in ([n for n in found if n not in METADATA_FILES], [n for n in found if n in METADATA_FILES]):
        if names:
            system.copy([join(source, n) for n in names], [join(place, n) for n in names])
    remove(new)

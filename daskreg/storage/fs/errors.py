"""Exceptions of the file system, of Zarr and of codecs, translated to those of daskreg."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from daskreg.errors import DaskregError, NotFound, OutOfSpace, OutputError, Unreadable, closest
from daskreg.storage.fs.address import is_remote

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Translate exceptions of reading ``name`` to NotFound and Unreadable."""
    try:
        yield
    except (DaskregError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise not_found(name) from error
    except PermissionError as error:
        raise Unreadable(f"{name} may not be read: {reason(error)}; ask its owner for read permission.") from error
    except ImportError as error:
        raise Unreadable(f"{name}: {reason(error)}; install the missing package.") from error
    except Exception as error:
        raise Unreadable(f"{name} cannot be read: {reason(error)}.") from error


@contextmanager
def write_errors(name: str) -> Iterator[None]:
    """Translate operating-system errors of writing ``name`` to OutOfSpace and OutputError."""
    try:
        yield
    except (DaskregError, MemoryError):
        raise
    except (OSError, RuntimeError) as error:
        number = _number(error)
        if number in DISK_FULL:
            raise OutOfSpace(f"{name}: no space left to write it; free space, or write to another disk.") from error
        if number is None and not isinstance(error, OSError):
            raise
        raise OutputError(f"{name} cannot be written: {reason(error)}.") from error


def not_found(path: str) -> NotFound:
    """The error for a missing path, which suggests the most similar name in its folder; for a broken link, names its target."""
    if not is_remote(path) and os.path.islink(path):
        return NotFound(f"{path} is a link to {os.readlink(path)}, which does not exist; bring that back, or change the link.")
    return NotFound(f"{path or 'an empty path'} does not exist{_beside(path)}.")


def require_exists(path: str) -> None:
    """Raises NotFound for a missing local path, Unreadable for one without permission."""
    if is_remote(path):
        return
    try:
        os.stat(path)
    except PermissionError as error:
        raise Unreadable(f"{path} may not be read: {reason(error)}; ask its owner for read permission.") from error
    except (OSError, ValueError) as error:
        raise not_found(path) from error


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0].rstrip(".")[:200]


def _number(error: Exception) -> int | None:
    """The errno of an exception; zarrs states it in the message."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


def _beside(path: str) -> str:
    folder, name = os.path.split(path)
    if is_remote(path):
        return ""
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return f"; neither does the folder {folder}" if folder and not os.path.exists(folder) else ""
    near = closest(name, names, 0.6)
    return f"; the nearest name there is {os.path.join(folder, near)}" if near else ""

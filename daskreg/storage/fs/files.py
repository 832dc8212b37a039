"""Small operations on local paths and fsspec URLs alike."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from daskreg.deferred import DeferredModule
from daskreg.storage.fs.address import is_remote
from daskreg.storage.fs.errors import is_forbidden, require_regular, write_errors

if TYPE_CHECKING:
    import fsspec
else:
    fsspec = DeferredModule("fsspec")

METADATA_FILES = ("zarr.json", ".zgroup", ".zarray")  # one of them makes a folder a Zarr store


def exists(path: str) -> bool:
    """Whether a local or remote path exists."""
    if not is_remote(path):
        return os.path.lexists(path)
    with write_errors(path):
        system, inner = remote_file_system(path)
        return bool(system.exists(inner))


def is_folder(path: str) -> bool:
    """Whether a local or remote path is a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    system, inner = remote_file_system(path)
    system.invalidate_cache(inner)  # other processes write too
    return bool(system.isdir(inner))


def remove(path: str) -> None:
    """Delete a file or a whole store, if it exists."""
    if is_remote(path):
        system, inner = remote_file_system(path)
        if system.exists(inner):
            system.rm(inner, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def list_names(path: str) -> list[str]:
    """Names in a folder; empty if it does not exist."""
    if not is_remote(path):
        return os.listdir(path) if os.path.isdir(path) else []
    system, inner = remote_file_system(path)
    system.invalidate_cache(inner)  # other processes write too
    return [n.rstrip("/").rpartition("/")[2] for n in system.ls(inner, detail=False)] if system.exists(inner) else []


def read_text(path: str) -> str | None:
    """The content of a small file, None if it does not exist."""
    try:
        if is_remote(path):
            system, inner = remote_file_system(path)
            return bytes(system.cat_file(inner)).decode()
        require_regular(path)
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def read_bytes(path: str) -> bytes | None:
    """The content of a file, None if it does not exist."""
    try:
        if is_remote(path):
            system, inner = remote_file_system(path)
            return bytes(system.cat_file(inner))
        require_regular(path)
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        if is_remote(path) and is_forbidden(error):  # as servers answer for what does not exist, where listing is not permitted
            return None
        raise


def replace_text(path: str, text: str) -> None:
    """Replace a small file atomically and durably."""
    if is_remote(path):
        with write_errors(path):
            system, inner = remote_file_system(path)
            system.pipe_file(inner, text.encode())
        return
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        remove(temporary)
        raise
    sync(os.path.dirname(path))


def sync(path: str) -> None:
    """Flush a local file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hidden_sibling(path: str, word: str) -> str:
    """A hidden path beside another one, such as ``.NAME.word``."""
    folder, slash, name = path.rstrip("/").rpartition("/")
    return f"{folder}{slash}.{name}.{word}"


def remote_file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    system, inner = fsspec.core.url_to_fs(path)
    return system, inner

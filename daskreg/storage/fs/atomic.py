"""Outputs that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from daskreg.errors import OutputError, OutputExists
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.errors import writing
from daskreg.storage.zarr.nodes import METADATA


@contextmanager
def replacing(path: str, overwrite: bool = False) -> Iterator[str]:
    """A sibling path to write to, renamed to ``path`` when the block ends well and deleted when it does not.

    Remote stores cannot rename: there the block writes in place, metadata last.
    Raises OutputExists, OutOfSpace, OutputError.
    """
    require_place(path, overwrite)
    if is_remote(path):
        with writing(path):
            if exists(path):
                remove(path)
            yield path
        return
    place = os.path.realpath(path)
    temporary = beside(place, f"part-{os.getpid()}-{uuid4().hex[:8]}")  # its own, should an earlier attempt still be writing
    try:
        with writing(path):
            yield temporary
            _swap(temporary, place)
    except OutputError as error:
        _discard(temporary)
        raise type(error)(str(error).replace(temporary, path)) from error  # nobody knows the temporary name
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: str) -> None:
    """Delete what is half written, although threads may still be writing to it: what they add goes when they have ended."""
    atexit.register(remove, path)  # which runs once all threads of Dask's pool have come to their end
    with suppress(OSError):
        remove(path)


def require_place(path: str, overwrite: bool) -> None:
    """Raises OutputExists when something is there that may not go, OutputError when it has no folder to be in."""
    if exists(path):
        if not overwrite:
            raise OutputExists(f"{path} exists already; choose another name, or replace it with --overwrite (overwrite=True).")
        _require_ours(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not is_remote(path) and not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: the folder {folder} does not exist; create it first.")


def require_apart(output: str | Path, *sources: Any) -> None:
    """Raises OutputError when the output is, or holds, one of the addresses that it is made from (arrays and None are none).

    Overwriting takes away what is still to be read: chunks that are gone read as 0.
    """
    place = _resolved(parse_address(output).path)
    for source in sources:
        if isinstance(source, str | Path):
            theirs = _resolved(parse_address(source).path)
            if theirs == place or theirs.startswith(place + "/"):
                raise OutputError(f"{output} is, or holds, an input of this command ({source}); choose another output.")


def _resolved(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def exists(path: str) -> bool:
    """Whether anything is at a local or remote path."""
    if not is_remote(path):
        return os.path.lexists(path)
    with writing(path):
        system, inner = _remote(path)
        return bool(system.exists(inner))


def remove(path: str) -> None:
    """A file or a whole store, if it is there."""
    if is_remote(path):
        system, inner = _remote(path)
        if system.exists(inner):
            system.rm(inner, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def names(path: str) -> list[str]:
    """What is in a folder; nothing where there is none."""
    if not is_remote(path):
        return os.listdir(path) if os.path.isdir(path) else []
    system, inner = _remote(path)
    system.invalidate_cache(inner)  # other processes write too
    return [n.rstrip("/").rpartition("/")[2] for n in system.ls(inner, detail=False)] if system.exists(inner) else []


def get_text(path: str) -> str | None:
    """What a small file says, None where there is none."""
    try:
        if is_remote(path):
            system, inner = _remote(path)
            return bytes(system.cat_file(inner)).decode()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def put_text(path: str, text: str) -> None:
    """Replace a small file in one step that survives a power cut: all of the old text or all of the new."""
    if is_remote(path):
        system, inner = _remote(path)
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
    """A local file, or the entries of a folder, are on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: str, word: str) -> str:
    """A hidden sibling of a local path."""
    folder, name = os.path.split(path.rstrip("/"))
    return os.path.join(folder, f".{name}.{word}")


def _swap(temporary: str, place: str) -> None:
    """A folder cannot be renamed over a folder: the old one steps aside for a moment."""
    if not os.path.isdir(place):
        os.replace(temporary, place)
        return
    old = beside(place, f"old-{os.getpid()}")
    os.rename(place, old)
    try:
        os.rename(temporary, place)
    except BaseException:  # Ctrl-C between the two
        if not os.path.lexists(place):
            os.rename(old, place)
        raise
    remove(old)


def _require_ours(path: str) -> None:
    """Overwriting deletes: never a folder that is no Zarr store."""
    inside = set(os.listdir(path)) if not is_remote(path) and os.path.isdir(path) else set()
    if inside and not inside & set(METADATA):
        raise OutputError(f"{path} is a folder, neither image nor run, and is not overwritten; choose another name or remove it.")


def _remote(path: str) -> tuple[Any, str]:
    system, inner = fsspec.core.url_to_fs(path)
    return system, inner

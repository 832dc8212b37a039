"""Outputs that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from daskreg.errors import OutputError, OutputExists
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.errors import write_errors
from daskreg.storage.fs.files import METADATA_FILES, exists, hidden_sibling, remove


@contextmanager
def atomic_output(path: str, overwrite: bool = False) -> Iterator[str]:
    """A path of the same name in a folder beside ``path``, moved there when the block ends well and deleted when it does not.

    What else the block writes into that folder (the voxels of a header, say) is moved first, and replaces files only with
    ``overwrite``.
    Remote stores cannot rename: there the block writes to the path itself, metadata last.
    Raises OutputExists, OutOfSpace, OutputError.
    """
    require_writable(path, overwrite)
    if is_remote(path):
        with write_errors(path):
            if exists(path):
                remove(path)
            yield path
        return
    target = os.path.realpath(path)
    folder = hidden_sibling(target, f"part-{os.getpid()}-{uuid4().hex[:8]}")  # unique: an earlier attempt may still be writing
    temporary = os.path.join(folder, os.path.basename(path.rstrip("/")))
    try:
        with write_errors(path):
            os.mkdir(folder)
            yield temporary
            _publish(temporary, target, overwrite)
    except OutputError as error:
        _discard(folder)
        raise type(error)(str(error).replace(temporary, path)) from error  # users do not know the temporary name
    except BaseException:
        _discard(folder)
        raise


def _discard(path: str) -> None:
    """Delete partial output now, and again at exit: threads of Dask's pool may still be writing to it."""
    atexit.register(remove, path)  # runs after the threads of the pool have ended
    with suppress(OSError):
        remove(path)


def require_writable(path: str, overwrite: bool) -> None:
    """Raises OutputExists for an existing path without ``overwrite``, OutputError when its folder does not exist."""
    if exists(path):
        if not overwrite:
            raise OutputExists(f"{path} exists already; choose another name, or replace it with --overwrite (overwrite=True).")
        _require_zarr_store(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not is_remote(path) and not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: the folder {folder} does not exist; create it first.")


def require_distinct(output: str | Path, *sources: Any) -> None:
    """Raises OutputError when the output is, or contains, one of its own inputs; sources other than addresses are ignored.

    Overwriting would delete what is still to be read, and missing chunks read as 0.
    """
    target = _resolved(parse_address(output).path)
    for source in sources:
        if isinstance(source, str | Path):
            source_path = _resolved(parse_address(source).path)
            if source_path == target or source_path.startswith(target + "/"):
                raise OutputError(f"{output} is, or holds, an input of this command ({source}); choose another output.")


def _resolved(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)


def _publish(temporary: str, target: str, overwrite: bool) -> None:
    """Move complete output to its path, the target last."""
    folder, name = os.path.split(temporary)
    parent = os.path.dirname(target)
    others = [n for n in sorted(os.listdir(folder)) if n != name]
    for other in others:
        if os.path.lexists(os.path.join(parent, other)) and not overwrite:
            raise OutputExists(
                f"{os.path.join(parent, other)} exists already; choose another name, or replace it with --overwrite."
            )
    for other in others:
        os.replace(os.path.join(folder, other), os.path.join(parent, other))
    _swap(temporary, target)
    os.rmdir(folder)


def _swap(temporary: str, target: str) -> None:
    """Replace the target; a folder cannot be renamed over a folder, so an old one is renamed first."""
    if not os.path.isdir(target):
        os.replace(temporary, target)
        return
    old = hidden_sibling(target, f"old-{os.getpid()}")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:  # Ctrl-C between the two
        if not os.path.lexists(target):
            os.rename(old, target)
        raise
    remove(old)


def _require_zarr_store(path: str) -> None:
    """Raises OutputError for a folder that is no Zarr store: overwriting would delete it."""
    inside = set(os.listdir(path)) if not is_remote(path) and os.path.isdir(path) else set()
    if inside and not inside & set(METADATA_FILES):
        raise OutputError(f"{path} is a folder, neither image nor run, and is not overwritten; choose another name or remove it.")

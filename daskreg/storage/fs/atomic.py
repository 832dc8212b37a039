"""Outputs that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from daskreg.errors import OutputError, OutputExists
from daskreg.storage.fs.address import is_remote, join, parse_address
from daskreg.storage.fs.errors import write_errors
from daskreg.storage.fs.files import METADATA_FILES, exists, hidden_sibling, is_folder, list_names, remove
from daskreg.storage.fs.lock import OutputLock, is_being_written, only_writer
from daskreg.storage.fs.swap import Version, put_new, version_of
from daskreg.storage.fs.swap import replace as swap

log = logging.getLogger("daskreg")


@contextmanager
def atomic_output(path: str, overwrite: bool = False, lock: OutputLock | None = None) -> Iterator[str]:
    """A path of the same name in a folder beside ``path``, moved there when the block ends well and deleted when it does not.

    What is replaced can be read until then. What else the block writes into that folder (the voxels of a header, say) is moved
    first, and replaces files only with ``overwrite``. In an object store the block writes to the path itself where nothing is,
    metadata last; else beside it, and is copied there.
    lock: of the output, where the caller holds it already.
    Raises OutputExists, also when something else is at the path by the end; OutputBusy while another process writes there;
    OutOfSpace, OutputError.
    """
    require_folder(path)
    with nullcontext(lock) if lock is not None else only_writer(path) as held:
        if held.taken_over:
            with write_errors(path):
                remove_leftovers(path)
        require_writable(path, overwrite)
        before = version_of(path)
        with _unfinished(path, before) as unfinished, write_errors(path):
            yield unfinished
            _require_there(unfinished, path)
            held.verify()
            if unfinished != path:
                _publish(unfinished, path, before, overwrite)


@contextmanager
def _unfinished(path: str, before: Version | None) -> Iterator[str]:
    """A path to write to, deleted when the block fails; errors name ``path``, because users do not know the other one."""
    place, folder = _remote_place(path, before) if is_remote(path) else _local_place(path)
    try:
        with write_errors(path):
            if is_remote(path):
                remove(folder)
            else:
                os.mkdir(folder)
        yield place
    except OutputError as error:
        _discard(folder, path)
        raise type(error)(str(error).replace(place, path)) from error
    except BaseException:
        _discard(folder, path)
        raise
    if folder != path:
        remove(folder)


def _local_place(path: str) -> tuple[str, str]:
    target = os.path.realpath(path)
    folder = hidden_sibling(target, f"part-{os.getpid()}-{uuid4().hex[:8]}")  # unique: an earlier attempt may still be writing
    return os.path.join(folder, os.path.basename(path.rstrip("/"))), folder


def _remote_place(path: str, before: Version | None) -> tuple[str, str]:
    folder = path if before is None else hidden_sibling(path, "new")
    return (path, path) if before is None else (join(folder, path.rpartition("/")[2]), folder)


def _discard(folder: str, path: str) -> None:
    """Delete partial output now, and again at exit: threads of Dask's pool may still be writing to it.

    What is registered runs after these threads have ended.
    """
    if is_remote(path):
        atexit.register(_discard_remains, folder, path)
    else:
        atexit.register(remove, folder)  # no later output has this name
    with suppress(OSError):
        remove(folder)


def _discard_remains(folder: str, path: str) -> None:
    """Delete what came into the folder of a remote output that failed, unless it is written again, or has been since."""
    with suppress(Exception):  # a server may be gone: whoever writes there next deletes it
        if not is_being_written(path) and is_folder(folder) and not (folder == path and _has_metadata(path)):
            remove(folder)


def remove_leftovers(path: str) -> None:
    """Delete what processes that died while they wrote ``path`` left beside it; finish what one of them was replacing."""
    if is_remote(path):
        _finish_remote(path)
        return
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    found = {word: sorted(n for n in os.listdir(folder) if n.startswith(f".{name}.{word}-")) for word in ("part", "old")}
    for old in found["old"]:
        if not os.path.lexists(target):  # ended between two renames, see ``swap``
            _finish_local(target, os.path.join(folder, old), [os.path.join(folder, n, name) for n in found["part"]])
    for leftover in found["part"] + (found["old"] if os.path.lexists(target) else []):
        remove(os.path.join(folder, leftover))


def _finish_local(target: str, old: str, parts: list[str]) -> None:
    """A single new output is complete, or what it was to replace would not have been moved; else that comes back."""
    there = [part for part in parts if os.path.lexists(part)]
    os.rename(there[0] if len(there) == 1 else old, target)
    log.warning("%s: the process that was replacing it died; %s is there now", target, "its result" if there else "the old one")


def _finish_remote(path: str) -> None:
    folder = hidden_sibling(path, "new")
    beside = join(folder, path.rpartition("/")[2])
    if _has_metadata(beside) and not _has_metadata(path):
        swap(beside, path)
        log.warning("%s: the process that was replacing it died while it copied its result; it is there now", path)
    remove(folder)


def _has_metadata(path: str) -> bool:
    return any(exists(join(path, name)) for name in METADATA_FILES)


def require_writable(path: str, overwrite: bool) -> None:
    """Raises OutputExists for an existing path without ``overwrite``, OutputError when it cannot be written."""
    if exists(path):
        if not overwrite:
            raise OutputExists(f"{path} exists already; choose another name, or replace it with --overwrite (overwrite=True).")
        _require_no_link_of_a_store(path)
        require_replaceable(path)
    require_folder(path)


def require_folder(path: str) -> None:
    """Raises OutputError where the folder of a local output is not there."""
    folder = os.path.dirname(os.path.abspath(path))
    if not path:
        raise OutputError("the output has an empty name; give one, as in -o RUN.zarr.")
    if not is_remote(path) and not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: the folder {folder} does not exist; create it first.")


def _require_no_link_of_a_store(path: str) -> None:
    """Raises OutputError for a link inside a Zarr store: what a store says must not decide what is replaced."""
    if is_remote(path):
        return
    at = os.path.abspath(path)
    while at != os.path.dirname(at):
        above = os.path.dirname(at)
        if os.path.islink(at) and set(os.listdir(above)) & set(METADATA_FILES):
            raise OutputError(f"{path}: {at} is a link in a Zarr store, to {os.readlink(at)}; to replace that, name it itself.")
        at = above


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


def require_unchanged(path: str, before: Version | None) -> None:
    """Raises OutputExists when something else is at the output than before it was written: it may be a newer result."""
    if version_of(path) != before:
        what = "appeared" if before is None else "was changed"
        raise OutputExists(f"{path} {what} while this command wrote it, and is kept; choose another name, or repeat the command.")


def _require_there(unfinished: str, path: str) -> None:
    if not exists(unfinished):
        raise OutputError(f"{path}: what was written so far was removed meanwhile ({unfinished}); nothing was written.")


def _publish(unfinished: str, path: str, before: Version | None, overwrite: bool) -> None:
    """Move complete output to its path, the target last."""
    require_unchanged(path, before)
    target = path if is_remote(path) else os.path.realpath(path)
    if not is_remote(path):
        _publish_companions(*os.path.split(unfinished), os.path.dirname(target), overwrite)
    put_in_place(unfinished, target, before)


def put_in_place(new: str, target: str, before: Version | None) -> None:
    """Replace the target, or put ``new`` where nothing is. Raises OutputExists for what appeared there meanwhile."""
    try:
        (put_new if before is None else swap)(new, target)
    except FileExistsError:
        require_unchanged(target, before)
        raise


def _publish_companions(folder: str, name: str, parent: str, overwrite: bool) -> None:
    others = [n for n in sorted(os.listdir(folder)) if n != name]
    for other in others:
        if os.path.lexists(os.path.join(parent, other)) and not overwrite:
            raise OutputExists(
                f"{os.path.join(parent, other)} exists already; choose another name, or replace it with --overwrite."
            )
    for other in others:
        os.replace(os.path.join(folder, other), os.path.join(parent, other))


def require_replaceable(path: str) -> None:
    """Raises OutputError for a folder that is no Zarr store: overwriting would delete it."""
    with write_errors(path):
        inside = set(list_names(path)) if is_folder(path) else set()
    if inside and not inside & set(METADATA_FILES):
        raise OutputError(
            f"{path} is a folder, neither image nor run, and is not overwritten; name a store in it, "
            f"{path.rstrip('/')}/NAME.zarr, or remove it."
        )

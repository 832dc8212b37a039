"""Where a run is written: at its path or, where it replaces something, beside it until it is complete.

What a store says never decides which path is written, renamed or deleted: all of them follow from the path that the user gave.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from daskreg.deferred import DeferredModule
from daskreg.errors import InputError, OutputBusy, OutputError, OutputExists, Unreadable
from daskreg.storage.fs.address import is_remote, join
from daskreg.storage.fs.atomic import put_in_place, require_replaceable
from daskreg.storage.fs.errors import write_errors
from daskreg.storage.fs.files import exists, hidden_sibling, list_names, remove, replace_text
from daskreg.storage.fs.swap import version_of
from daskreg.storage.runs.run_state import has_checkpoint, is_active_elsewhere, read_state

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")

log = logging.getLogger("daskreg")
ENTRIES = ("zarr.json", "moved", "transform", "checkpoint")  # of a run
AWAITS_SWAP = "awaits_swap"  # true in a complete run that has not yet taken the place of what it replaces
REPLACED_VERSION = "replaced_version"  # of what it replaces, when the run began


def place_beside(target: str) -> str:
    """Where a run is written that replaces the output at ``target``."""
    return hidden_sibling(target if is_remote(target) else os.path.realpath(target), "new")


def settle(target: str, *, anyway: bool = False) -> None:
    """Finish what a process was doing that died while it replaced ``target``.

    A complete run beside it takes its place, and what was replaced is deleted.
    anyway: even if something else has been put at ``target`` since. Raises OutputExists in that case without it.
    """
    place, state = place_beside(target), _state(target)
    if state.get(AWAITS_SWAP):  # the two were exchanged
        remove(place)
        set_root(target, {k: v for k, v in state.items() if k not in (AWAITS_SWAP, REPLACED_VERSION)})
        return
    beside = _state(place)
    if not beside.get("complete"):
        return
    if not beside.get(AWAITS_SWAP):
        remove(place)
        return
    publish(place, target, anyway=anyway)
    log.warning("%s: the result of a run that was stopped before it took its place is there now", target)


def publish(place: str, target: str, *, anyway: bool = False) -> None:
    """Put a complete run in the place of what it replaces. Raises OutputExists where that is no longer what it was."""
    state, present = read_state(place), version_of(target)
    if not anyway and present not in (None, state.get(REPLACED_VERSION)):
        raise OutputExists(
            f"{target} was changed while a run worked that was to replace it, and is kept. That run is complete in {place}: "
            f"'daskreg register --resume -o {target}' puts it in the place of {target}; else delete it."
        )
    with write_errors(target):
        put_in_place(place, target if is_remote(target) else os.path.realpath(target), present)
        set_root(target, {k: v for k, v in state.items() if k not in (AWAITS_SWAP, REPLACED_VERSION)})


def require_new(path: str, overwrite: bool) -> None:
    """Raises OutputExists, saying what is at the path, unless it may be replaced."""
    if overwrite or not exists(path):
        return
    state = _state(path)
    if not state:
        try:
            require_replaceable(path)
        except OutputError as error:  # --overwrite would not help
            raise OutputExists(str(error)) from None
    kind = "something that is not a daskreg run"
    if state:
        kind = "a complete run" if state.get("complete") else "an incomplete run"
        kind += " that --resume continues" if has_checkpoint(path) else ""
    raise OutputExists(f"{path} exists already: {kind}; choose another name, or replace it with --overwrite (overwrite=True).")


def clear_place(place: str) -> None:
    """Delete an unfinished run of a process that ended. Raises OutputBusy for one that goes on, OutputExists for other things."""
    if not exists(place):
        return
    require_inactive(place, place)
    if not is_remains(place):
        raise OutputExists(f"{place}, where the new run is written until it is complete, is no run; move it away.")
    with write_errors(place):
        remove(place)


def require_inactive(place: str, name: str) -> None:
    """Raises OutputBusy where another process works on the run: other versions of daskreg make no lock."""
    state = _state(place)
    if is_active_elsewhere(state):
        raise OutputBusy(f"{name} is a run that process {state['pid']} is working on; wait for it, or stop it.")


def is_remains(path: str) -> bool:
    """Whether there is nothing at a path but parts of a run."""
    return set(list_names(path)) <= set(ENTRIES)


def require_no_links(path: str) -> None:
    """Raises Unreadable for a symbolic link in a run, which would decide what is written or deleted when it is continued."""
    if is_remote(path):
        return
    for folder in (path, join(path, "transform"), join(path, "checkpoint")):
        for entry in _entries(folder):
            if entry.is_symlink():
                raise Unreadable(
                    f"{path} holds a link, {entry.path}, to {os.readlink(entry.path)}; a run has none, so it is not continued: "
                    "repeat it with --overwrite."
                )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """A folder and the folders in it, which hold the arrays of a checkpoint."""
    found: list[os.DirEntry[str]] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            found.append(entry)
            if folder.endswith("/checkpoint") and entry.is_dir(follow_symlinks=False):
                found += [*os.scandir(entry.path)]
    return found


def set_root(path: str, state: Mapping[str, Any], scene: Mapping[str, Any] | None = None) -> None:
    """Replace the root attributes of a run atomically."""
    ome = {"ome": dict(scene)} if scene is not None else {}
    if is_remote(path):
        group = zarr.open_group(path, mode="r+")
        group.attrs.put({**dict(group.attrs), "daskreg": dict(state), **ome})
        return
    target = os.path.join(path, "zarr.json")
    with open(target, encoding="utf-8") as file:
        tree = json.load(file)
    tree["attributes"] |= {"daskreg": dict(state), **ome}
    replace_text(target, json.dumps(tree, indent=2))


def _state(path: str) -> dict[str, Any]:
    """The state of the run at a path, empty where no run is."""
    try:
        return read_state(path) if exists(path) else {}
    except InputError:
        return {}

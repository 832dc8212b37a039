"""RUN.zarr: the result of one registration, complete or visibly not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import IncompleteRun, InputError, OutputError, Unreachable
from daskreg.grid import Grid
from daskreg.storage.fs.address import is_remote, join, parse_address, require_zarr_path
from daskreg.storage.fs.atomic import require_writable
from daskreg.storage.fs.errors import read_errors, write_errors
from daskreg.storage.fs.files import exists, remove
from daskreg.storage.fs.process import now
from daskreg.storage.fs.swap import version_of
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED, transform_attributes
from daskreg.storage.runs.place import (
    AWAITS_SWAP,
    REPLACED_VERSION,
    clear_place,
    is_remains,
    place_beside,
    publish,
    require_inactive,
    require_new,
    require_no_links,
    set_root,
    settle,
)
from daskreg.storage.runs.run_images import RunImages
from daskreg.storage.runs.run_state import (
    has_checkpoint,
    incomplete_message,
    new_state,
    read_state,
    require_resumable,
    resumed_state,
    to_json,
)
from daskreg.storage.transform_record import StoredLink, require_map
from daskreg.storage.zarr import ngff06
from daskreg.storage.zarr.chunks import require_all_stored
from daskreg.storage.zarr.nodes import attributes, open_node

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")


@dataclass(frozen=True)
class RunStore(RunImages):
    """One Zarr v3 group, an NGFF 0.6 scene: ``moved``, a 0.5 image, and ``transform/displacement``, a 0.6 field; affine and
    provenance are attributes.

    Every process that writes opens it with ``attach``; each chunk has one writer. The run is complete after ``finish``.

    path: where it is read and written;  target: the output that it takes the place of when it is complete, None if it is there
    already;  attempt: of several processes that work on it one after another, this one's
    """

    target: str | None = None
    attempt: str = ""

    @classmethod
    def create(
        cls, path: str | Path, *, fixed: Grid, moving: Grid, overwrite: bool = False, recipe: Mapping[str, Any] | None = None
    ) -> RunStore:
        """A new, incomplete run: at its path or, where something is, beside it until ``finish`` replaces that.

        The caller is the output's only writer (``only_writer``).
        recipe: JSON from which the run can be continued: addresses of the inputs and the configuration.
        Raises OutputExists, OutputBusy, OutputError, OutOfSpace.
        """
        target = _absolute(path)
        settle(target)
        cls.require_place(target, overwrite)
        require_inactive(target, target)
        state = new_state(fixed, moving) | ({"recipe": to_json(recipe)} if recipe is not None else {})
        replaced = version_of(target)
        place = target if replaced is None else place_beside(target)
        if replaced is not None:
            clear_place(place)
            state[REPLACED_VERSION] = replaced
        with write_errors(target):
            group = zarr.create_group(place, zarr_format=3, attributes={"daskreg": state})
            group.create_group("transform", attributes=transform_attributes(np.eye(4)))
        return cls(place, None if replaced is None else target, state["attempt"])

    @staticmethod
    def require_place(path: str | Path, overwrite: bool = False) -> None:
        """Raises OutputExists and OutputError where ``create`` would; nothing is written."""
        target = _absolute(path)
        require_zarr_path(target)
        with write_errors(target):
            require_new(target, overwrite)
            require_writable(target, overwrite)

    @classmethod
    def attach(cls, path: str | Path, attempt: str = "") -> RunStore:
        """A run, complete or not, to write to or to inspect.

        attempt: of the process that the caller writes for.
        Raises NotFound, Unreadable for what is no run, OutputError for one that was removed or belongs to another attempt by now.
        """
        store = cls(_absolute(path), attempt=attempt)
        store.require_mine() if attempt else read_state(store.path)
        return store

    @classmethod
    def resume(cls, path: str | Path) -> RunStore:
        """``unfinished(path).continued()``."""
        return cls.unfinished(path).continued()

    @classmethod
    def unfinished(cls, path: str | Path) -> RunStore:
        """An incomplete run that has a checkpoint: that which is to replace the output at the path, else that at the path.

        The caller is the output's only writer (``only_writer``).
        Raises NotFound, Unreadable, OutputExists when it is complete, IncompleteRun when it is active or has no checkpoint.
        """
        target = _absolute(path)
        settle(target, anyway=True)
        beside = place_beside(target)
        place = beside if exists(beside) and (has_checkpoint(beside) or not has_checkpoint(target)) else target
        require_resumable(target, place, read_state(place))
        require_no_links(place)
        return cls(place, target if place == beside else None)

    def continued(self, **changes: Any) -> RunStore:
        """The same as a run of this process; partly written images are deleted. changes: to its state."""
        state = resumed_state(self.state) | changes
        with write_errors(self.name):
            set_root(self.path, state)
            for name in (MOVED, DISPLACEMENT):
                remove(join(self.path, name))
        return RunStore(self.path, self.target, state["attempt"])

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """A complete run. Raises NotFound, Unreadable and IncompleteRun."""
        store = cls.attach(path)
        if not store.complete:
            raise IncompleteRun(incomplete_message(store.path, store.state))
        return store

    @property
    def name(self) -> str:
        """Where the user finds the run when it is complete."""
        return self.target or self.path

    @property
    def complete(self) -> bool:
        """Whether the run finished."""
        return bool(self.state.get("complete"))

    @property
    def provenance(self) -> dict[str, Any]:
        """Configuration, inputs, losses and times, as given to ``finish``."""
        return dict(self.state.get("provenance", {}))

    @property
    def recipe(self) -> dict[str, Any]:
        """What the run can be continued from, as given to ``create``; empty without."""
        return dict(self.state.get("recipe", {}))

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) world -> world, fixed to moving points, order z, y, x, 1; the identity until it is set."""
        with read_errors(self.path):
            matrix = np.asarray(self._group["transform"].attrs["daskreg"]["affine"], float)  # type: ignore[call-overload, index]  # any JSON
        require_map(self.path, StoredLink(matrix))
        return matrix

    def set_affine(self, matrix: ArrayLike) -> None:
        """Store the affine part, (4, 4). Raises ValueError for another shape or numbers that are not finite."""
        affine = np.asarray(matrix, float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"an affine of shape {affine.shape} was given; (4, 4) finite numbers were expected.")
        with write_errors(self.path):
            self._group["transform"].attrs.update(transform_attributes(affine))

    def finish(self, provenance: Mapping[str, Any], images: Sequence[str] = ()) -> RunStore:
        """Write the provenance, mark the run complete, delete the checkpoints, and replace what it was to replace.

        images: that were written; others that are there count as well.
        Returns the run at its final path. Raises OutputError where it was removed or is another's; OutputExists where what was to
        be replaced has changed: both are then kept.
        """
        self.require_mine()
        for name in (MOVED, DISPLACEMENT):
            if name in images or self.has(name):
                self._require_all_stored(name)
        state = self.state | {"provenance": to_json(provenance), "complete": True, "finished": now()}
        if self.target is not None:
            state[AWAITS_SWAP] = True
        with write_errors(self.path):
            set_root(self.path, state, self._scene())
        CheckpointStore(self.path).remove()
        if self.target is None:
            return self
        publish(self.path, self.target)
        return RunStore(self.target)

    def _require_all_stored(self, name: str) -> None:
        """Raises OutputError where a chunk that was written is gone, or more."""
        try:
            levels = [self._array(name, k) for k in range(len(self._level_grids(name)))]
        except InputError as error:
            raise OutputError(f"{self.name}: {name}, which was written, cannot be read: {error}") from error
        for level in levels:
            require_all_stored(level, f"{self.name}/{name}/{level.basename}")

    def require_mine(self) -> None:
        """Raises OutputError when the run was removed, or when another process continues it; Unreachable where a server that has
        it does not answer.
        """
        try:
            state = self.state
        except Unreachable:
            raise
        except InputError as error:
            raise OutputError(
                f"{self.name} was removed while the run wrote to it ({self.path}); nothing is left of it: start it again."
            ) from error
        if self.attempt and state.get("attempt") != self.attempt:
            raise OutputError(
                f"{self.name} was taken over by process {state.get('pid')} on {state.get('host')}, which continues it."
            )

    def mark_resumable(self) -> None:
        """Mark a stopped run that can be continued from its checkpoint. Raises ValueError when it has none."""
        if CheckpointStore(self.path).latest() is None:
            raise ValueError(f"{self.path} has no checkpoint to continue from; abandon() it.")
        with write_errors(self.path):
            set_root(self.path, self.state | {"stopped": now(), "resumable": True})

    def abandon(self) -> None:
        """Delete the run, or what is left of one that was removed. What it would have replaced stays, another's run too."""
        try:
            mine = not self.attempt or self.state.get("attempt") == self.attempt
        except InputError:
            mine = is_remains(self.path)
        if mine:
            with write_errors(self.path):
                remove(self.path)

    def _scene(self) -> dict[str, Any]:
        field = DISPLACEMENT if self.has(DISPLACEMENT) else None
        return ngff06.scene_attributes([(self.affine, self.fixed_grid, field)], self.fixed_grid.unit)


def is_run(path: str | Path) -> bool:
    """Whether a store is a run, complete or not. Raises NotFound and Unreadable."""
    own = attributes(open_node(_absolute(path))).get("daskreg")
    return isinstance(own, dict) and own.get("kind") == "run"


def _absolute(path: str | Path) -> str:
    clean = parse_address(path).path
    return clean if is_remote(clean) else os.path.abspath(clean)

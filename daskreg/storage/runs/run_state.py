"""The state of a run, as its root attributes hold it: who works on it, whether it is still active, how to continue it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from daskreg.deferred import DeferredModule
from daskreg.errors import IncompleteRun, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.storage.fs.files import exists, hidden_sibling
from daskreg.storage.fs.process import is_running, now, this_process
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.zarr.multiscale import grid_attributes
from daskreg.storage.zarr.nodes import attributes, open_node
from daskreg.storage.zarr.schema import StateSchema, validated

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")

log = logging.getLogger("daskreg")
RUN_FORMAT = 2  # 1 stored the displacement along the world's axes, as NGFF 0.5
READABLE_FORMATS = (1, 2)


def read_state(path: str) -> dict[str, Any]:
    """The root attributes of a run, read now. Raises NotFound and Unreadable."""
    node = open_node(path)
    own = attributes(node).get("daskreg")
    if not isinstance(node, zarr.Group) or not isinstance(own, dict) or own.get("kind") != "run":
        raise Unreadable(f"{path} is not a daskreg run; a RUN.zarr that 'daskreg register' wrote was expected.")
    if own.get("format") not in READABLE_FORMATS:
        raise Unreadable(f"{path} has run format {own.get('format')}, {RUN_FORMAT} or less was expected; use a newer daskreg.")
    validated(StateSchema, own, path, "daskreg")
    return own


def new_state(fixed: Grid, moving: Grid) -> dict[str, Any]:
    """The state of a run that starts in this process."""
    return {
        "kind": "run",
        "format": RUN_FORMAT,
        "complete": False,
        "started": now(),
        "attempt": uuid4().hex,
        **this_process(),
        "fixed": grid_attributes(fixed),
        "moving": grid_attributes(moving),
    }


def resumed_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run that this process continues."""
    kept = {k: v for k, v in state.items() if k not in ("stopped", "resumable")}
    return kept | this_process() | {"attempt": uuid4().hex, "resumed": [*state.get("resumed", []), now()]}


def require_resumable(path: str, place: str, state: Mapping[str, Any]) -> None:
    """Raises OutputExists for a complete run, IncompleteRun for one that is active. One without a checkpoint begins again.

    path: of the run;  place: where it is written until it is complete
    """
    if state.get("complete"):
        raise OutputExists(f"{path} is complete: there is nothing to continue; open it, or repeat it with --overwrite.")
    if _is_active(state):
        raise IncompleteRun(
            f"{path} cannot be continued: it is still going on (process {state['pid']}); wait for it, or stop it."
        )
    if CheckpointStore(place).latest() is None:
        log.info("%s stopped before its first checkpoint: starting again", path)


def incomplete_message(path: str, state: Mapping[str, Any]) -> str:
    """When an incomplete run started, what became of it, and how to proceed."""
    aside = hidden_sibling(path, "replaced")  # where an earlier version put what a run was to replace
    older = f" An older result is in {aside}; to have it back, rename it." if exists(aside) else ""
    started = state.get("started")
    return f"{path} is incomplete: the run started {started} and {_status(state)}; {_suggestion(path, state)}.{older}"


def _status(state: Mapping[str, Any]) -> str:
    host, pid = state.get("host"), state.get("pid")
    if state.get("stopped"):
        return f"stopped {state['stopped']} with a checkpoint"
    running = is_running(state)
    if running is None:
        return f"died, or is still going on {host}"
    return f"is still going (process {pid})" if running else f"died (process {pid} is gone)"


def _suggestion(path: str, state: Mapping[str, Any]) -> str:
    if _is_active(state):
        return "wait for it, or stop it"
    wait = "wait for it, " if not state.get("stopped") and is_running(state) is None else ""
    resume = "continue it with 'daskreg register ... --resume', " if has_checkpoint(path) else ""
    return f"{wait}{resume}{'or ' if wait or resume else ''}repeat it with --overwrite"


def has_checkpoint(path: str) -> bool:
    """Whether the run at a path can be continued from a readable checkpoint."""
    try:
        return CheckpointStore(path).latest() is not None
    except Unreadable:
        return False


def is_active_elsewhere(state: Mapping[str, Any]) -> bool:
    """Whether another process of this host works on the run."""
    return _is_active(state) and state.get("pid") != os.getpid()


def _is_active(state: Mapping[str, Any]) -> bool:
    """Whether the process of the run is alive on this host."""
    return not state.get("stopped") and not state.get("complete") and is_running(state) is True


def to_json(value: Any) -> Any:
    """A value as JSON: NaN and infinity become null, other types text."""
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)

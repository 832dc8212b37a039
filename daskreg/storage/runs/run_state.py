"""The state of a run, as its root attributes hold it: who works on it, whether it is still active, how to continue it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from daskreg.errors import IncompleteRun, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.zarr.multiscale import grid_attributes

RUN_FORMAT = 2  # 1 stored the displacement along the world's axes, as NGFF 0.5
READABLE_FORMATS = (1, 2)


def new_state(fixed: Grid, moving: Grid) -> dict[str, Any]:
    """The state of a run that starts in this process."""
    return {
        "kind": "run",
        "format": RUN_FORMAT,
        "complete": False,
        "started": now(),
        **_process(),
        "fixed": grid_attributes(fixed),
        "moving": grid_attributes(moving),
    }


def _process() -> dict[str, Any]:
    """Host, process id and start time: enough to tell later whether the run is still active."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": _process_start(os.getpid())}


def resumed_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run that this process continues."""
    kept = {k: v for k, v in state.items() if k not in ("stopped", "resumable")}
    return kept | _process() | {"resumed": [*state.get("resumed", []), now()]}


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def require_resumable(path: str, state: Mapping[str, Any]) -> None:
    """Raises OutputExists for a complete run, IncompleteRun for one that is active or has no checkpoint."""
    if state.get("complete"):
        raise OutputExists(f"{path} is complete: there is nothing to continue; open it, or repeat it with --overwrite.")
    if _is_active(state):
        raise IncompleteRun(
            f"{path} cannot be continued: it is still going on (process {state['pid']}); wait for it, or stop it."
        )
    if CheckpointStore(path).latest() is None:
        raise IncompleteRun(f"{path} cannot be continued: it stopped before its first checkpoint; repeat it with --overwrite.")


def incomplete_message(path: str, state: Mapping[str, Any]) -> str:
    """When an incomplete run started, what became of it, and how to proceed."""
    older = f" What it was to replace is kept in {state['replaces']} beside it." if state.get("replaces") else ""
    started = state.get("started")
    return f"{path} is incomplete: the run started {started} and {_status(state)}; {_suggestion(path, state)}.{older}"


def _status(state: Mapping[str, Any]) -> str:
    host, pid = state.get("host"), state.get("pid")
    if state.get("stopped"):
        return f"stopped {state['stopped']} with a checkpoint"
    if host == socket.gethostname() and isinstance(pid, int):
        return f"is still going (process {pid})" if _is_active(state) else f"died (process {pid} is gone)"
    return f"died, or is still going on {host}"


def _suggestion(path: str, state: Mapping[str, Any]) -> str:
    if _is_active(state):
        return "wait for it, or repeat it with --overwrite"
    wait = "" if state.get("stopped") or state.get("host") == socket.gethostname() else "wait for it, "
    resume = "continue it with 'daskreg register ... --resume', " if has_checkpoint(path) else ""
    return f"{wait}{resume}{'or ' if wait or resume else ''}repeat it with --overwrite"


def has_checkpoint(path: str) -> bool:
    """Whether the run at a path can be continued from a readable checkpoint."""
    try:
        return CheckpointStore(path).latest() is not None
    except Unreadable:
        return False


def _is_active(state: Mapping[str, Any]) -> bool:
    """Whether the process of the run is alive on this host."""
    pid, born = state.get("pid"), state.get("pid_started")
    if state.get("stopped") or state.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    return _is_running(pid) and (born is None or born == _process_start(pid))  # process ids are reused


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process_start(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, None without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


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

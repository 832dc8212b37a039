"""Which process something belongs to, written down so that another process can tell later whether it is still running."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DEAD_STATES = ("Z", "X")  # a zombie has ended, although its id is still taken


def this_process() -> dict[str, Any]:
    """Host, boot, process namespace, process id and start of this process, as JSON; None where the system does not say."""
    return {
        "host": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "pid_started": _started(os.getpid()),
    }


def is_running(record: Mapping[str, Any]) -> bool | None:
    """Whether the process of a record is alive; None where this one cannot see it: on another host, in another container."""
    pid, here = record.get("pid"), this_process()
    if not isinstance(pid, int) or record.get("host") != here["host"]:
        return None
    if any(record.get(k, here[k]) != here[k] for k in ("boot", "pid_namespace")):  # hosts may share a name
        return None
    started = record.get("pid_started")
    return _exists(pid) and (started is None or started == _started(pid))  # process ids are reused


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _exists(pid: int) -> bool:
    if pid < 1:  # to the system these are groups of processes
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    fields = _status(pid)
    return not fields or fields[0] not in DEAD_STATES


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, None without /proc."""
    fields = _status(pid)
    return int(fields[19]) if fields else None


def _status(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on, empty without."""
    return (_read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None

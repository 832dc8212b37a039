"""A process that is watched to its end: its time, and the most memory that it and its children have together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.1  # seconds between two looks at the memory
TAIL = 2000  # characters of the end of a log that are told


@dataclass(frozen=True)
class WatchedProcess:
    """seconds: wall time with process start;  peak_rss: bytes of the process and its children together;  out: what it printed."""

    seconds: float
    peak_rss: int
    out: str


class ProcessFailed(RuntimeError):
    """A process that failed; ended: how, in words;  tail: the end of what it said."""

    def __init__(self, command: Sequence[str], ended: str, tail: str = "") -> None:
        super().__init__(f"{' '.join(command)} {ended}\n{tail}".rstrip())
        self.ended, self.tail = ended, tail

    @property
    def sentence(self) -> str:
        """How it ended, and the last line that it said."""
        said = [line.strip() for line in self.tail.splitlines() if line.strip()]
        return f"it {self.ended}{f': {said[-1][:400]}' if said else ''}".rstrip(".") + "."


def watched(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> WatchedProcess:
    """Run a command to its end, with its standard error in ``log``.

    env: variables besides those of this process;  timeout: seconds after which it is killed.
    Raises ProcessFailed, a RuntimeError, with the end of the log when it fails, or takes longer.
    """
    peak, done = [0], threading.Event()
    start = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env={**os.environ, **(env or {})}
        )
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, done), daemon=True)
        watcher.start()
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(command, f"took longer than {timeout:g} s") from None
        finally:  # whoever interrupts this leaves nothing running
            _end(process)
            done.set()
            watcher.join()
    seconds = time.perf_counter() - start
    if process.returncode:
        tail = (out + log.read_text(errors="replace"))[-TAIL:]
        raise ProcessFailed(command, _ended(process.returncode), tail)
    return WatchedProcess(round(seconds, 2), peak[0], out)


def _ended(code: int) -> str:
    try:
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    except ValueError:
        return f"ended with code {code}"


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process that still runs, with its children."""
    if process.poll() is None:
        for child in _tree(process.pid):
            child.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _watch(pid: int, peak: list[int], done: threading.Event) -> None:
    # a sum over the tree, which getrusage does not give: it knows only the largest child
    while not done.wait(INTERVAL):
        peak[0] = max(peak[0], _tree_rss(pid))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _tree_rss(pid: int) -> int:
    total = 0
    for process in _tree(pid):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total

"""A registration by the command line, as a user starts it: its process, its workers, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from daskreg.storage import CheckpointStore

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 240.0  # seconds until the first checkpoint, kernels being compiled


class Command:
    """``daskreg register`` in a session of its own; killed with its workers when the block is left."""

    def __init__(self, fixed: Any, moving: Any, output: Path, *options: Any) -> None:
        line = [sys.executable, "-m", "daskreg.cli", "register", fixed, moving, "-o", output, *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.path, self.started = output, time.monotonic()
        self.log = output.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*map(str, line)], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """What it has written to the terminal so far."""
        return self.log.read_text()

    @property
    def checkpoint(self) -> int:
        """Number of its last checkpoint, 0 before the first."""
        found = CheckpointStore(str(self.path)).latest()
        return found[0] if found else 0

    def wait_until(self, true: Callable[[], Any], seconds: float = START_TIMEOUT) -> float:
        """The seconds that it took; fails where the command ends before, or it takes longer."""
        begun = time.monotonic()
        while not true():
            assert self.process.poll() is None, f"it has ended: {self.said()}"
            assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s"
            time.sleep(0.02)
        return time.monotonic() - begun

    def workers(self) -> list[int]:
        """Process ids of its workers, in the order in which they were started."""
        own = psutil.Process(self.process.pid)
        forked = [c for child in own.children() if "forkserver" in " ".join(child.cmdline()) for c in child.children()]
        started = [c for c in own.children() if "spawn_main" in " ".join(c.cmdline())]
        return [c.pid for c in sorted(forked + started, key=lambda c: c.create_time())]

    def ended(self, seconds: float) -> tuple[int, str, float]:
        """Exit code, what it has written to the terminal, and the seconds until it ended; fails where it takes longer."""
        begun = time.monotonic()
        code = self.process.wait(timeout=seconds)
        return code, self.said(), time.monotonic() - begun

"""What a signal does to a command: it unwinds, so that nothing half-written stays, and the process ends."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130  # what a shell calls Ctrl-C
TERMINATED = 143  # and SIGTERM: batch systems send it before they kill
PATIENCE = 10.0  # seconds that threads have to end after a signal: blocks being computed, a kernel being compiled
MOMENT = 0.05  # seconds until a signal is heard that came at the wrong time
DEAF = ("_gc_callback", "__del__")  # Dask's callback of the garbage collector, and the end of an object


def terminate(*_: Any) -> None:
    """Unwind as Ctrl-C does, so that what is half written goes and what was replaced comes back."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
    raise SystemExit(TERMINATED)


def listen(number: int, stop: Callable[[int, FrameType | None], Any]) -> None:
    """Let ``stop`` raise at a signal, a moment later where Python would swallow what is raised, but not for ever."""
    later = iter(range(round(PATIENCE / MOMENT)))

    def heard(_: int, frame: FrameType | None) -> None:
        deaf = any(f.f_code.co_name in DEAF for f, _ in traceback.walk_stack(frame))
        if deaf and next(later, None) is not None:
            signal.signal(signal.SIGALRM, heard)
            signal.setitimer(signal.ITIMER_REAL, MOMENT)
        else:
            stop(number, frame)

    signal.signal(number, heard)


def end(code: int) -> None:
    """At its end Python waits for all threads; one that the signal met while it was being started never hears that it may go."""
    threading.main_thread().join()
    time.sleep(PATIENCE)
    atexit._run_exitfuncs()
    os._exit(code)

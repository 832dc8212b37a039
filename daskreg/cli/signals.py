"""Signal handling: a command unwinds, so that no partial output remains, and the process exits."""

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
SHUTDOWN_TIMEOUT = 10.0  # seconds that threads have to finish after a signal: blocks being computed, a kernel being compiled
RETRY_INTERVAL = 0.05  # seconds until a signal that arrived in an unsafe frame is handled
UNSAFE_FRAMES = ("_gc_callback", "__del__")  # Python discards what is raised in Dask's garbage collector callback, and there


def terminate(*_: Any) -> None:
    """Unwind as Ctrl-C does: partial outputs are removed, and replaced ones restored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    raise SystemExit(TERMINATED)


def handle(number: int, stop: Callable[[int, FrameType | None], Any]) -> None:
    """Call ``stop``, which raises, at a signal; later where Python would discard the exception, up to SHUTDOWN_TIMEOUT."""
    retries = iter(range(round(SHUTDOWN_TIMEOUT / RETRY_INTERVAL)))

    def received(_: int, frame: FrameType | None) -> None:
        unsafe = any(f.f_code.co_name in UNSAFE_FRAMES for f, _ in traceback.walk_stack(frame))
        if unsafe and next(retries, None) is not None:
            signal.signal(signal.SIGALRM, received)
            signal.setitimer(signal.ITIMER_REAL, RETRY_INTERVAL)
        else:
            stop(number, frame)

    signal.signal(number, received)


def exit_after_timeout(code: int) -> None:
    """Exit although threads are left, which Python waits for: one that was starting when the signal came never stops."""
    threading.main_thread().join()
    time.sleep(SHUTDOWN_TIMEOUT)
    atexit._run_exitfuncs()
    os._exit(code)

"""Signal handling: a command unwinds, so that no partial output remains, and the process exits."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

INTERRUPTED = 130  # what a shell calls Ctrl-C
HUNG_UP = 129  # SIGHUP: the terminal was closed, or the connection to it lost
TERMINATED = 143  # SIGTERM: batch systems send it before they kill
SIGNALLED = (HUNG_UP, INTERRUPTED, TERMINATED)
SHUTDOWN_TIMEOUT = 10.0  # seconds that threads have to finish after a signal: blocks being computed, a kernel being compiled
RETRY_INTERVAL = 0.05  # seconds until a signal that arrived in an unsafe frame is handled
UNSAFE_FRAMES = ("_gc_callback", "__del__")  # Python discards what is raised in Dask's garbage collector callback, and there


class Interrupt(KeyboardInterrupt):
    """Ctrl-C. Python kills itself by SIGINT in the end where a KeyboardInterrupt itself has left ``exec``, as at an import."""

    notes_are_said = True


class Terminated(SystemExit):
    """SIGTERM or SIGHUP."""

    notes_are_said = True


def handle_signals() -> None:
    """Unwind at SIGTERM, SIGHUP and Ctrl-C, except where the process was told to ignore them: by nohup, or in the background."""
    handle(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handle(signal.SIGHUP, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        handle(signal.SIGINT, interrupt())


def interrupt() -> Callable[[int, FrameType | None], None]:
    """What Ctrl-C does: KeyboardInterrupt, but not again while the first one is cleaned up after, up to SHUTDOWN_TIMEOUT."""
    last = [-SHUTDOWN_TIMEOUT]

    def stop(*_: Any) -> None:
        now = time.monotonic()
        if now - last[0] >= SHUTDOWN_TIMEOUT:
            last[0] = now
            raise Interrupt

    return stop


def terminate(number: int, _: Any = None) -> None:
    """Unwind as Ctrl-C does: partial outputs are removed, and replaced ones restored."""
    for other in (signal.SIGTERM, signal.SIGHUP):  # a second one must not interrupt the cleanup
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(128 + number)


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


def end(code: Any) -> None:
    """Leave with an exit code: nothing is left to clean up, so that a later signal ends the process at once and silently.

    After a signal others are ignored, and the process exits although threads are left.
    """
    signalled = code in SIGNALLED
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if signalled else signal.SIG_DFL)
    if signalled:
        logging.disable()  # threads of a cluster that was starting report until they notice
        threading.Thread(target=exit_after_timeout, args=(code,), daemon=True).start()
    sys.exit(code)


def exit_after_timeout(code: int) -> None:
    """Exit although threads are left, which Python waits for: one that was starting when the signal came never stops."""
    threading.main_thread().join()
    time.sleep(SHUTDOWN_TIMEOUT)
    atexit._run_exitfuncs()
    os._exit(code)

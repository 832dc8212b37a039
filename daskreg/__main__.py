"""The command ``daskreg``, and ``python -m daskreg``."""

import atexit
import os
import signal
import sys
import threading
from typing import Any

INTERRUPTED = 130  # exit code


def main() -> None:
    """Run a command. Ctrl-C is handled before anything else is imported."""
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # of small launches: of no use to whoever registers images
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    from daskreg.cli import main as run

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            leave(end.code or 0)
        raise


def leave(code: int) -> None:
    """Exit once all threads have ended and what is registered for the exit has run, without tearing Python down.

    Finalising an interpreter with NumPy, Numba and LLVM takes half a second, in which nothing that matters happens.
    """
    getattr(threading, "_shutdown", int)()  # as Python itself begins
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or the terminal is gone
            code = code or 1 if stream is sys.stdout else code
    os._exit(code)


def _stop(*_: Any) -> None:
    """End the process: nothing has been started yet."""
    os.write(2, b"daskreg: stopped; nothing was written.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()

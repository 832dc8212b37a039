"""argv -> one workflow -> exit code; no numerics."""

from __future__ import annotations

import signal
import sys
import threading
import warnings

import typer

from daskreg.cli import registration, results, transforms
from daskreg.cli.app import app
from daskreg.cli.signals import INTERRUPTED, TERMINATED, exit_after_timeout, handle, terminate
from daskreg.errors import DaskregError

__all__ = ["app", "main", "registration", "results", "transforms"]


def main() -> None:
    """Run a command; a deliberate failure prints one sentence on standard error and exits with its code."""
    handle(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job has none
        handle(signal.SIGINT, signal.default_int_handler)
    # a signal between two of Zarr's steps leaves coroutines behind
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    try:
        app()
    except DaskregError as error:
        typer.echo("\n".join([f"daskreg: {error}", *getattr(error, "__notes__", [])]), err=True)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            kept = getattr(stop, "__notes__", ["nothing was written."])
            typer.echo(f"daskreg: stopped; {' '.join(kept)}", err=True)
            threading.Thread(target=exit_after_timeout, args=(stop.code,), daemon=True).start()
        raise

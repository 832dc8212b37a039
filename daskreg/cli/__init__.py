"""argv -> one workflow -> exit code; no numerics.

Nothing slow is imported with this package: a signal that arrives while the rest is imported ends a command as any other does.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from daskreg.cli.environment import leave_out_unreadable
from daskreg.cli.signals import INTERRUPTED, SIGNALLED, end, handle_signals

if TYPE_CHECKING:
    from daskreg.cli import comparison, jobs, kernels, registration, results, series, transforms, viewing
    from daskreg.cli.application import app

__all__ = ["app", "comparison", "jobs", "kernels", "main", "registration", "results", "series", "transforms", "viewing"]
COMMANDS = (
    "registration",
    "results",
    "transforms",
    "series",
    "viewing",
    "comparison",
    "jobs",
    "kernels",
)  # modules that add theirs to the application


def __getattr__(name: str) -> Any:
    """The Typer application with all commands, or a module of them, imported when first used."""
    if name not in ("app", *COMMANDS):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in COMMANDS:
        globals()[module] = import_module(f"{__name__}.{module}")
    globals()["app"] = import_module(f"{__name__}.application").app
    return globals()[name]


def main() -> None:
    """Run a command; a failure prints one sentence on standard error and exits with its code."""
    # a signal between two of Zarr's steps leaves coroutines behind
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for sentence in leave_out_unreadable(os.environ):
        _say(f"daskreg: {sentence}")
    try:
        handle_signals()
        getattr(sys.modules[__name__], "app")()  # noqa: B009  # the module's own attribute, which ``__getattr__`` makes
    except BaseException as error:  # noqa: BLE001  # the last place that can say anything: all of it ends the process
        code, said = _ended(error)
        if said:
            _say(said)
        end(code)


def _ended(error: BaseException) -> tuple[Any, str]:
    """Exit code of a command that ended in an exception, and what is said about it."""
    code = error.code if isinstance(error, SystemExit) else INTERRUPTED if isinstance(error, KeyboardInterrupt) else None
    if code in SIGNALLED:
        notes = _notes(error)
        return code, f"daskreg: stopped. {' '.join(notes)}" if notes else "daskreg: stopped; nothing was written."
    if isinstance(error, SystemExit):
        return code, ""
    from daskreg.cli.failure import describe

    return describe(error)


def _notes(error: BaseException | None) -> list[str]:
    """Those of an exception or, without any, of the one that it was raised from: Typer replaces KeyboardInterrupt."""
    while error is not None:
        if found := getattr(error, "__notes__", []):
            return list(found)
        error = error.__cause__ or error.__context__
    return []


def _say(text: str) -> None:
    """On standard error, if there still is one: after SIGHUP the terminal is gone."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        sys.stderr = None

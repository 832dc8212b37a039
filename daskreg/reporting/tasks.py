"""Progress of what Dask computes outside of a registration: resampling, inversion, export, evaluation."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daskreg.errors import counted
from daskreg.kernels.compiler.tally import TALLY
from daskreg.reporting import log as messages
from daskreg.reporting.follow import in_notebook
from daskreg.reporting.lines import COMPILING
from daskreg.steps import observed_by

log = logging.getLogger("daskreg")
DELAY = 2.0  # seconds within which nothing is said: most is done then
INTERVAL = 0.5  # seconds between two renewals of what is on a screen
LINES = 30.0  # seconds between two lines of a log
F = TypeVar("F", bound=Callable[..., Any])
_shown = [False]  # whether a display is there already: one function may call another


class Screen(Protocol):
    """Shows a text in place of the one before."""

    def __call__(self, text: str, share: float) -> None:
        """share: of the work that is done, 0 to 1."""


def with_progress(what: str) -> Callable[[F], F]:
    """Show the progress of what a function computes on this machine; on a cluster its dashboard does."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with _watched(what):
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]  # of the same signature

    return decorate


@contextmanager
def _watched(what: str) -> Iterator[None]:
    if _shown[0] or not messages.TREE.isEnabledFor(logging.INFO):
        yield
        return
    _shown[0] = True
    try:
        with screen() as shown:
            tasks = Tasks(what, shown)
            with observed_by(tasks.step), TALLY.listening(tasks.compiling), _callback(tasks.task):
                yield
            tasks.tell_of_kernels()
    finally:
        _shown[0] = False


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Lines of the log about what Dask computes on this machine within something that shows its own progress."""
    tasks = Tasks(what, _Lines())
    with observed_by(tasks.step), _callback(tasks.task):
        yield


class Tasks:
    """How much is done: steps of a loop, each of which may be tasks of Dask; and that kernels are compiled for it."""

    def __init__(self, what: str, screen: Screen) -> None:
        self.what, self.screen = what, screen
        self.count, self.compiled = TALLY.count, TALLY.count.as_dict()
        self.begun = time.monotonic()
        self.shown, self.loop, self.kernels = self.begun + DELAY - INTERVAL, (0, 1), 0

    def step(self, number: int, of: int) -> None:
        """A step of the loop begins."""
        self.loop = number, of
        self._show(0.0)

    def task(self, done: int, of: int) -> None:
        """So many tasks of this step are done."""
        self._show(done / max(1, of))

    def compiling(self, path: Path) -> None:
        """A kernel is compiled now: before the first one a line of the log, for it takes seconds in which nothing else ends."""
        if not self.kernels:
            log.info("%s: %s", self.what, COMPILING)
        self.kernels += 1

    def tell_of_kernels(self) -> None:
        """How much of the time it took to compile kernels, where that was long."""
        seconds = time.monotonic() - self.begun
        if self.kernels and seconds > DELAY and self.count is TALLY.count:
            of = sum(getattr(self.count, name) - self.compiled[name] for name in ("seconds", "waited"))
            said = f"{of:.0f} of them to compile {counted(self.kernels, 'kernel')} (once on this machine)"
            log.info("%s: %.0f s, %s", self.what, seconds, said)

    def _show(self, inner: float) -> None:
        now = time.monotonic()
        if now - self.shown >= INTERVAL:
            self.shown = now
            share = (self.loop[0] + inner) / self.loop[1]
            also = f", {COMPILING}" if self.kernels and TALLY.busy else ""
            self.screen(f"{self.what}: {100 * share:.0f} %, {now - self.begun:.0f} s{also}", share)


def _callback(report: Callable[[int, int], None]) -> Any:
    """Dask's callback for its schedulers of this machine; it is called in the thread that waits for the result."""

    def after(key: Any, result: Any, graph: Any, state: Any, worker: Any) -> None:
        done = len(state["finished"])
        report(done, done + sum(len(state[k]) for k in ("ready", "waiting", "running")))

    return import_module("dask.callbacks").Callback(posttask=after)


@contextmanager
def screen(lines: Callable[[], Screen] | None = None) -> Iterator[Screen]:
    """What shows a text where somebody looks: below a notebook's cell, on a line of a terminal, else in lines of the log."""
    if in_notebook():
        yield _cell()
    elif sys.stderr is not None and sys.stderr.isatty():
        with _line() as line:
            yield line
    else:
        yield (lines or _Lines)()


class _Lines:
    """A line of the log now and then."""

    def __init__(self) -> None:
        self.reported = time.monotonic()

    def __call__(self, text: str, share: float) -> None:
        """A line, where the last one is long ago."""
        if time.monotonic() - self.reported >= LINES:
            self.reported = time.monotonic()
            log.info("%s", text)


@contextmanager
def _line() -> Iterator[Screen]:
    """One line of a terminal, which is gone in the end."""
    status = import_module("rich.console").Console(stderr=True).status("")
    running = [False]

    def show(text: str, share: float) -> None:
        if not running[0]:
            running[0] = True
            status.start()
        status.update(text)

    try:
        yield show
    finally:
        if running[0]:
            status.stop()


def _cell() -> Screen:
    """A bar below the cell that runs."""
    output: Any = import_module("IPython.display")
    shown: list[Any] = []

    def show(text: str, share: float) -> None:
        value = {"text/plain": text, "text/html": f'<progress value="{share:.3f}"></progress> {text}'}
        if shown:
            output.update_display(value, raw=True, display_id=shown[0].display_id)
        else:
            shown.append(output.display(value, raw=True, display_id=True))

    return show

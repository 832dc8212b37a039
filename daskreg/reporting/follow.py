"""Who follows a run when nobody was named: a display in a notebook, bars on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from daskreg.engine.report import LevelReport, Observer, Place, Progress, observer_of
from daskreg.errors import ConfigError
from daskreg.reporting import log
from daskreg.reporting.lines import Lines

ProgressLike = Callable[[Progress], None] | bool | None  # False: nobody; None and True: whoever fits


@contextmanager
def following(progress: ProgressLike) -> Iterator[Observer]:
    """The observer of a run: as given, or the one that fits where this process runs. Raises ConfigError for what is none."""
    if progress is False:
        yield Observer()
    elif progress is not None and progress is not True:
        if not callable(progress) and not isinstance(progress, Observer):
            raise ConfigError(f"progress is {progress!r}; a function of a daskreg.Progress, False or None was expected.")
        yield observer_of(progress)
    elif in_notebook():
        from daskreg.reporting.notebook import display

        with log.shown(), display() as cell, _in_order(cell) as observer:
            yield observer
    else:
        with log.shown(), _on_terminal() as shown, _in_order(shown) as observer:
            yield observer


@contextmanager
def _on_terminal() -> Iterator[Observer]:
    """Bars on a terminal, else lines; nothing where messages of this level are not wanted."""
    if sys.stderr is None or not sys.stderr.isatty() or not log.TREE.isEnabledFor(log.INFO):
        yield Lines()
        return
    from rich.console import Console

    from daskreg.reporting.bars import bars

    with bars(Console(stderr=True)) as drawn:
        yield drawn


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = _shell()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def interactive() -> bool:
    """Whether somebody types at a prompt, in a notebook or a terminal: Ctrl-C ends what runs, not the process."""
    return _shell() is not None or hasattr(sys, "ps1")


def _shell() -> Any:
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


class InOrder(Observer):
    """Passes on what it is told, in order, in the thread that waits for the run: there a notebook knows the cell that runs."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self._told = observer, SimpleQueue[Callable[[], None]]()

    def __call__(self, progress: Progress) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer, progress))

    def level_ended(self, level: LevelReport) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer.level_ended, level))

    def resumed(self, place: Place) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer.resumed, place))

    def phase(self, name: str) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer.phase, name))

    def compiling(self, kernels: int, most: int | None = None) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer.compiling, kernels, most))

    def memory(self, rank: int, resident: int) -> None:
        """Pass it on later."""
        self._told.put(partial(self.observer.memory, rank, resident))

    def dashboard(self, address: str) -> None:
        """Pass it on at once: the thread that waits for the run says it."""
        self.observer.dashboard(address)

    def tick(self) -> None:
        """Pass on what has come."""
        while True:
            try:
                self._told.get_nowait()()
            except Empty:
                break
        self.observer.tick()


@contextmanager
def _in_order(observer: Observer) -> Iterator[InOrder]:
    made = InOrder(observer)
    try:
        yield made
    finally:
        made.tick()

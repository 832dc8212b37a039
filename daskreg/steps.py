"""Progress of work in several steps, from the loop over them to whatever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_observer: ContextVar[Callable[[int, int], None] | None] = ContextVar("steps", default=None)


@contextmanager
def observed_by(listener: Callable[[int, int], None]) -> Iterator[None]:
    """Call a function for every step that is reported meanwhile."""
    token = _observer.set(listener)
    try:
        yield
    finally:
        _observer.reset(token)


def step(number: int, of: int) -> None:
    """The step with a number, from 0, of so many begins."""
    if (listener := _observer.get()) is not None:
        listener(number, of)

"""How far work in several steps is: told by whoever loops over them, heard by whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_heard: ContextVar[Callable[[int, int], None] | None] = ContextVar("steps", default=None)


@contextmanager
def heard_by(listener: Callable[[int, int], None]) -> Iterator[None]:
    """Call a function for every step that is told meanwhile."""
    token = _heard.set(listener)
    try:
        yield
    finally:
        _heard.reset(token)


def step(number: int, of: int) -> None:
    """The step with a number, from 0, of so many begins."""
    if (listener := _heard.get()) is not None:
        listener(number, of)

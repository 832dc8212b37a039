"""The messages of daskreg: one tree of loggers below the name ``daskreg``, written to standard error."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from daskreg.errors import require_known

LEVELS = ("debug", "info", "warning", "error")
FORMAT, DATES = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"
TREE, INFO = logging.getLogger("daskreg"), logging.INFO


class StandardError(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Writes to what ``sys.stderr`` is when a message comes: a progress display puts itself in its place.

    On a terminal the message alone; elsewhere, as in the log of a job, with the date and the time.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """As ``StreamHandler`` has it."""
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        """The text of a message."""
        stamped = sys.stderr is not None and not sys.stderr.isatty()
        return logging.Formatter(FORMAT if stamped else "%(message)s", DATES).format(record)


def configure(level: str) -> None:
    """Messages of a command: daskreg's from a level on, warnings of other libraries. Raises ConfigError for another word."""
    require_known("log level", level, LEVELS)
    logging.basicConfig(level=logging.WARNING, handlers=[StandardError()])
    TREE.setLevel(level.upper())
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def shown() -> Iterator[None]:
    """Show daskreg's messages meanwhile, where nobody has configured logging; else whoever has decides."""
    if TREE.hasHandlers() or TREE.level != logging.NOTSET:
        yield
        return
    handler = StandardError()
    TREE.addHandler(handler)
    TREE.setLevel(logging.INFO)
    try:
        yield
    finally:
        TREE.removeHandler(handler)
        TREE.setLevel(logging.NOTSET)

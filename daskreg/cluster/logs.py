"""Silence Dask's loggers while an embedded cluster lives, and only then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ROOTS = "distributed", "dask_cuda"
LEVEL = logging.CRITICAL

_lock = threading.Lock()
_levels: dict[logging.Logger, int] = {}  # of the loggers that are silenced now
_users = 0


@contextmanager
def silenced() -> Iterator[None]:
    """Only critical messages of Dask's loggers in this process; their levels are restored in the end.

    An embedded cluster is an implementation detail, and its failures are raised as errors of daskreg. May be nested, and used by
    several threads at once.
    """
    global _users
    with _lock:
        _users += 1
        for logger in _loggers():
            if logger not in _levels:
                _levels[logger] = logger.level
                logger.setLevel(LEVEL)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _restore()


def _loggers() -> list[logging.Logger]:
    """The roots, and what has a level of its own below them."""
    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    below = [x for x in known if x.level != logging.NOTSET and x.name.startswith(tuple(f"{root}." for root in ROOTS))]
    return [*map(logging.getLogger, ROOTS), *below]


def _restore() -> None:
    for logger, level in _levels.items():
        if logger.level == LEVEL:  # else somebody else has set it in the meantime
            logger.setLevel(level)
    _levels.clear()

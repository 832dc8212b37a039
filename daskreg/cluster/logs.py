"""Dask's loggers while an embedded cluster lives: silent in this process, in a file in those of workers."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distributed.comm.core import CommClosedError

from daskreg.cluster.processes import shared
from daskreg.errors import RunError

ROOTS = "distributed", "dask_cuda"
LOOPS = "asyncio", "tornado"  # what says how their event loops fail
LEVEL = logging.CRITICAL
LOG_FILE = "DASKREG_WORKER_LOG"  # environment variable: where worker processes write what Dask logs
HEARTBEAT_FAILED = "Failed to communicate with scheduler during heartbeat"  # how Dask's message begins
FORMAT = "%(asctime)s worker process %(process)d %(name)s %(levelname)s %(message)s"

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
    logging.getLogger("asyncio").addFilter(_LATE_TIMEOUTS)  # does nothing where it is there
    logging.getLogger("tornado.application").addFilter(_EARLY_INTERRUPTS)
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


@contextmanager
def worker_log() -> Iterator[None]:
    """What Dask logs in worker processes that start meanwhile goes to a file. It is kept, and named, where a run fails."""
    handle, path = tempfile.mkstemp(prefix="daskreg-workers-", suffix=".log")
    os.close(handle)
    keep = False
    try:
        with shared(LOG_FILE, path):
            yield
    except RunError as error:
        keep = os.path.getsize(path) > 0
        if keep:
            error.add_note(f"What the workers logged is kept in {path}.")
        raise
    finally:
        if not keep:
            with suppress(OSError):
                os.unlink(path)


def log_to_file() -> None:
    """In a worker process: messages of Dask and of event loops go to the file of ``worker_log``, and not to the terminal."""
    if path := os.environ.get(LOG_FILE):
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter(FORMAT))
        for name in (*ROOTS, *LOOPS):
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = [handler], False
            logger.setLevel(logging.INFO)


class _LateTimeouts(logging.Filter):
    """Leaves out what asyncio says of a closed cluster: that a wait of Dask's for messages to send has ended, unseen."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is kept."""
        failure = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        unseen = "Future exception was never retrieved" in str(record.msg)
        return not (unseen and isinstance(failure, TimeoutError) and failure.args == ("Timeout",))


_LATE_TIMEOUTS = _LateTimeouts()


class _EarlyInterrupts(logging.Filter):
    """Leaves out what Tornado says of an interrupt that came before a call of Dask's had begun, which Dask then cannot cancel."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is kept."""
        failure = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not (isinstance(failure, NameError) and "sync.<locals>.cancel" in record.getMessage())


_EARLY_INTERRUPTS = _EarlyInterrupts()


class _NormalEnds(logging.Filter):
    """Leaves out what Dask's worker says, as an error with a traceback, of a rank that was told to stop, and of a scheduler that
    was closed while it was told that the worker lives.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is kept."""
        said = str(record.msg)
        if said.startswith(HEARTBEAT_FAILED):
            return not (record.exc_info and isinstance(record.exc_info[1], CommClosedError))
        failure = said.startswith("Compute Failed") and isinstance(record.args, tuple)
        return not (failure and any(str(a).startswith(("Stopped(", "Cancelled(")) for a in record.args or ()))


_NORMAL_ENDS = _NormalEnds()


def hide_normal_ends() -> None:
    """In a worker: a rank that stops because it was told to is no error, nor is a cluster that is closed; other failures are
    logged as ever.
    """
    logging.getLogger("distributed.worker").addFilter(_NORMAL_ENDS)  # does nothing where it is there


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

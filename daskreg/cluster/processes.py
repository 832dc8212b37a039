"""Start the worker processes of an embedded cluster.

Ctrl-C and SIGHUP, which a terminal sends to all processes, are answered by this one alone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

from daskreg.cluster import timeouts
from daskreg.cluster.closing import close_cluster, kill, worker_processes
from daskreg.errors import DaskregError, RunError
from daskreg.fork_server import TERMINAL_SIGNALS


@contextmanager
def started(make: Callable[[], Any]) -> Iterator[Any]:
    """The cluster that ``make`` starts, closed in the end. Raises RunError where processes end while they start."""
    cluster = _made(make)
    try:
        yield cluster
    finally:
        close_cluster(cluster)


def _made(make: Callable[[], Any]) -> Any:
    made: Future[Any] = Future()
    before = worker_processes()
    threading.Thread(target=_make, args=(make, made), name="daskreg-start", daemon=True).start()
    try:
        return _awaited(made, before)
    except DaskregError:
        raise
    except Exception as error:
        if not made.done():
            _abandon(made, before)
            waited = f"{timeouts.WORKER_START_TIMEOUT:.0f} s"
            raise RunError(
                f"the worker processes did not start within {waited}; look at the load and the memory left."
            ) from error
        raise RunError(
            f"the worker processes could not be started: {error} Look at what they wrote, and whether memory is left."
        ) from error
    except BaseException:
        _abandon(made, before)
        raise


def _awaited(made: Future[Any], before: set[BaseProcess]) -> Any:
    """The cluster. One worker process that ends makes the start fail: the others, which Dask would wait for, are killed then.

    Raises what the start raises, and TimeoutError after ``WORKER_START_TIMEOUT``.
    """
    end, seen = time.monotonic() + timeouts.WORKER_START_TIMEOUT, set[BaseProcess]()
    while not wait([made], timeouts.DONE_CHECK_INTERVAL).done:
        now = worker_processes() - before
        if seen - now:
            kill(now)
        if time.monotonic() > end:
            raise TimeoutError
        seen |= now
    return made.result()


def _make(make: Callable[[], Any], made: Future[Any]) -> None:
    """Threads and processes inherit which signals are blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        made.set_result(make())
    except BaseException as error:  # noqa: BLE001  # raised again where the result is waited for
        made.set_exception(error)


def _abandon(made: Future[Any], before: set[BaseProcess]) -> None:
    """End the processes of a cluster that is still starting, all but those from before, or close it if it has started."""
    kill(worker_processes() - before)
    with suppress(Exception):
        close_cluster(made.result(timeouts.STOP_TIMEOUT))


@contextmanager
def shared(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

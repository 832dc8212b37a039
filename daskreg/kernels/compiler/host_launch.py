"""Launches of compiled CPU kernels: the rows of a launch are shared out among threads.

A compiled kernel is a function ``f(begin, end, *arguments)`` that computes the items from ``begin`` to ``end``, usually rows of
voxels, without Python's global interpreter lock. Numba's own parallel loops take longer to compile, and need a threading
layer: its ``workqueue`` ends the process where two Python threads launch at once, and OpenMP does not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

from numba.core import config as settings

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.dry_run import NOTED

PARTS = 4  # of a launch for each thread, so that one that is kept from running does not hold up the others
LEAST_VOXELS = 16384  # of a part: fewer take about as long as to wake a thread for them
NAME = "daskreg-kernels"  # of the threads
_OWN = threading.local()


def thread_count() -> int:
    """The number of threads of a CPU launch from this thread."""
    return int(getattr(_OWN, "threads", 0)) or _most_threads()


def set_thread_count(n: int) -> None:
    """Use ``n`` threads for CPU launches from this thread, at most as many as the machine has."""
    _OWN.threads = max(1, min(n, _most_threads()))


def _most_threads() -> int:
    return int(vars(settings)["NUMBA_NUM_THREADS"])


def launch(compiled: Callable[..., Any], items: int, voxels: int, arguments: Sequence[Any]) -> None:
    """Call a compiled kernel for all of its items, or note that it would be.

    voxels: about how many there are, by which the work is shared out
    """
    noted = NOTED.get()
    if noted is not None:
        noted.note(compiled, (0, items, *arguments))
        return
    threads = 1 if SIMULATED else min(thread_count(), items, voxels // LEAST_VOXELS)
    if threads <= 1:
        compiled(0, items, *arguments)
    else:
        SharedLaunch(compiled, arguments, items, min(PARTS * threads, items, voxels // LEAST_VOXELS)).run(threads)


class SharedLaunch:
    """One launch in parts, which the launching thread and helpers take one after the other until none is left."""

    def __init__(self, compiled: Callable[..., Any], arguments: Sequence[Any], items: int, parts: int) -> None:
        self.compiled, self.arguments = compiled, arguments
        bounds = [items * k // parts for k in range(parts + 1)]
        self._todo = [*pairwise(bounds)][::-1]
        self._open, self._lock, self._ended = parts, threading.Lock(), threading.Event()
        self._failure: BaseException | None = None

    def run(self, threads: int) -> None:
        """Compute all parts by so many threads, this one among them. Raises what a part raised."""
        HELPERS.call(self.work, threads - 1)
        self.work()
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def work(self) -> None:
        """Compute parts until none is left; those that others compute may not have ended then."""
        while (part := self._next()) is not None:
            try:
                self.compiled(*part, *self.arguments)
            except BaseException as failure:  # noqa: BLE001  # raised by the thread that launched
                self._failure = failure
            self._end()

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return self._todo.pop() if self._todo else None

    def _end(self) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._ended.set()


class Helpers:
    """Threads of this process that help with launches, as many as were needed at once. A child process starts its own."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the threads: those of a parent process do not live in its child."""
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads, self._lock = 0, threading.Lock()

    def call(self, work: Callable[[], None], threads: int) -> None:
        """Let some threads call a function as soon as they are free; it is called for nothing where it comes too late."""
        if self._threads < threads:
            self._start(threads)
        for _ in range(threads):
            self._calls.put(work)

    def _start(self, threads: int) -> None:
        with self._lock:
            for k in range(self._threads, threads):
                threading.Thread(target=_serve, args=(self._calls,), name=f"{NAME}_{k}", daemon=True).start()
            self._threads = max(self._threads, threads)


def _serve(calls: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        calls.get()()


HELPERS = Helpers()
os.register_at_fork(after_in_child=HELPERS.reset)

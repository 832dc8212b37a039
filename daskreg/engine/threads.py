"""Several small computations at once, by the threads of a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from daskreg.engine.report import Watch
from daskreg.errors import Stopped
from daskreg.kernels.compiler.host_launch import set_thread_count, thread_count
from daskreg.kernels.device import Device

MAXIMUM_THREADS = 4  # that correlate at once: each holds about 50 MB


def require_going_on(watch: Watch) -> None:
    """Raises Stopped where the run is to stop."""
    if watch.stopping():
        raise Stopped("a search is not saved half-way: where the run is continued, it begins again.")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], device: Device, watch: Watch) -> list[Any]:
    """``function`` of every item, by several threads on a CPU, each with a single one for its kernels: they are small.

    Raises Stopped between two items where the run is to stop.
    """

    def checked(item: Any) -> Any:
        require_going_on(watch)
        return function(item)

    threads = 1 if device.kind != "cpu" or len(items) == 1 else min(thread_count(), MAXIMUM_THREADS)
    if threads == 1:
        return [checked(item) for item in items]
    with ThreadPoolExecutor(threads, initializer=set_thread_count, initargs=(1,)) as pool:
        return list(pool.map(checked, items))

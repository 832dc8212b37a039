"""Arrays that are computed when they are asked for, each once at a time, and kept up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any

from numpy.typing import NDArray


class ByteCache:
    """Keeps the arrays that were used last, of ``limit`` bytes together; threads that want the same one wait for the first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._running: dict[Hashable, Future[NDArray[Any]]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key. What ``compute`` raises is raised to all that wait, and not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            running = self._running.get(key)
            mine = running or self._running.setdefault(key, Future())
        return self._computed(key, compute, mine) if running is None else mine.result()

    def _computed(self, key: Hashable, compute: Callable[[], NDArray[Any]], mine: Future[NDArray[Any]]) -> NDArray[Any]:
        try:
            found = compute()
        except BaseException as error:
            with self._lock:
                del self._running[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(key, found)
            del self._running[key]
        mine.set_result(found)
        return found

    def _keep(self, key: Hashable, found: NDArray[Any]) -> None:
        self._kept[key] = found
        self.held += found.nbytes
        while self.held > self.limit:
            self.held -= self._kept.popitem(last=False)[1].nbytes

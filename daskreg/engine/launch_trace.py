"""When launches began and ended on a GPU, for a timeline of real ranks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from daskreg.engine.report import Trace

KEPT = 256  # launches, the last ones of a level


class LaunchTrace:
    """Events around launches. They cost a few microseconds each, so a traced run is not the one to time.

    xp: CuPy;  trace: is given the launches kept, in seconds of ``time.perf_counter``
    """

    def __init__(self, xp: Any, trace: Trace) -> None:
        self.xp, self.trace = xp, trace
        self.launches: deque[tuple[str, Any, Any]] = deque(maxlen=KEPT)
        self.base = self._event()
        self.base.synchronize()
        self.began = time.perf_counter()

    @contextmanager
    def around(self, name: str, stream: Any = None) -> Iterator[None]:
        """What is launched within, on a stream or the current one."""
        start = self._event(stream)
        yield
        self.launches.append((name, start, self._event(stream)))

    def report(self) -> None:
        """Hand over what was kept; waits for the device."""
        elapsed = self.xp.cuda.get_elapsed_time
        for name, start, end in self.launches:
            end.synchronize()
            self.trace(f"gpu {name}", *(self.began + elapsed(self.base, event) / 1e3 for event in (start, end)))
        self.launches.clear()

    def _event(self, stream: Any = None) -> Any:
        event = self.xp.cuda.Event()
        event.record(stream) if stream is not None else event.record()
        return event

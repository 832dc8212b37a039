"""How many kernels this process has compiled, not having found them on disk, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Compiled:
    """kernels: how many were compiled, or are being compiled;  seconds: that a core worked for it;  waited: seconds beside that,
    for kernels that other processes compiled, for a core, or for a GPU to take a kernel.
    """

    kernels: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


@dataclass
class Tally:
    """Counts kernels: it is called before and after each is compiled.

    listeners: called with the file of each kernel before it is compiled, whoever counts
    """

    count: Compiled = field(default_factory=Compiled)
    report: Callable[[Path], None] | None = None
    listeners: list[Callable[[Path], None]] = field(default_factory=list)
    _since: tuple[float, float] | None = None  # by the clock, and of the thread's work

    def begin_count(self, report: Callable[[Path], None] | None = None) -> Compiled:
        """A count from now on. report: called with the file of each kernel before it is compiled, and while
        another process does that.
        """
        self.count, self.report, self._since = Compiled(), report, None
        return self.count

    @contextmanager
    def listening(self, listener: Callable[[Path], None]) -> Iterator[None]:
        """A listener for a while."""
        self.listeners.append(listener)
        try:
            yield
        finally:
            self.listeners.remove(listener)

    @property
    def busy(self) -> bool:
        """Whether a kernel is being compiled."""
        return self._since is not None

    def begin(self, path: Path) -> None:
        """A kernel is compiled now, and will be kept in that file."""
        self.count.kernels += 1
        for listener in (self.report, *self.listeners):
            if listener is not None:
                listener(path)
        self._since = time.perf_counter(), time.thread_time()

    def wait(self, path: Path) -> None:
        """Another process compiles the kernel of that file."""
        if self.report is not None:
            self.report(path)

    def waited(self, seconds: float) -> None:
        """Another process has compiled a kernel meanwhile."""
        self.count.waited += seconds

    def end(self) -> None:
        """It is compiled."""
        if self._since is not None:
            whole, work = time.perf_counter() - self._since[0], time.thread_time() - self._since[1]
            self.count.seconds += work
            self.count.waited += max(0.0, whole - work)
            self._since = None


TALLY = Tally()

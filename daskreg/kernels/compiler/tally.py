"""How many kernels this process has compiled, not having found them on disk, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Compiled:
    """kernels: how many were compiled, or are being compiled;  seconds: that it took."""

    kernels: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


@dataclass
class Tally:
    """Counts kernels: it is called before and after each is compiled."""

    count: Compiled = field(default_factory=Compiled)
    report: Callable[[Path], None] | None = None
    _since: float | None = None

    def begin_count(self, report: Callable[[Path], None] | None = None) -> Compiled:
        """A count from now on. report: called with the file of each kernel before it is compiled, and while
        another process does that.
        """
        self.count, self.report, self._since = Compiled(), report, None
        return self.count

    def begin(self, path: Path) -> None:
        """A kernel is compiled now, and will be kept in that file."""
        self.count.kernels += 1
        if self.report is not None:
            self.report(path)
        self._since = time.perf_counter()

    def wait(self, path: Path) -> None:
        """Another process compiles the kernel of that file."""
        if self.report is not None:
            self.report(path)

    def end(self) -> None:
        """It is compiled."""
        if self._since is not None:
            self.count.seconds += time.perf_counter() - self._since
            self._since = None


TALLY = Tally()

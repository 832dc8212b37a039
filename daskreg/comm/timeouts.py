"""Deadlines and polling of a rank that waits for another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daskreg.errors import RankLost

POLL_INTERVAL = 0.05  # seconds between two checks for a stopped run
SPIN_TIME = 0.02  # seconds for which a wait may keep a core busy, where the processor has nothing else to do


@dataclass
class Timeouts:
    """How long a rank waits for another, and what it does meanwhile.

    deadline: seconds after which a silent rank counts as lost;  warn_after: seconds after which a slow rank is reported, once a
    wait;  check: called while waiting, raises when the run was stopped;  on_slow: called with the rank that is waited for and the
    seconds so far.
    """

    deadline: float = 600.0
    warn_after: float = 10.0
    check: Callable[[], None] = lambda: None
    on_slow: Callable[[int, float], None] = lambda rank, seconds: None

    @contextmanager
    def at_least(self, seconds: float) -> Iterator[None]:
        """Wait for a rank at least so long, and report it not before a tenth of that."""
        deadline, warn_after = self.deadline, self.warn_after
        self.deadline, self.warn_after = max(deadline, seconds), max(warn_after, seconds / 10)
        try:
            yield
        finally:
            self.deadline, self.warn_after = deadline, warn_after

    def wait(self, ready: Callable[[float], bool], peer: int, name: str) -> None:
        """Call ``ready(seconds)``, which blocks at most that long, until it is true. Raises RankLost naming the peer."""
        if ready(POLL_INTERVAL):
            return
        start, warned = time.monotonic() - POLL_INTERVAL, False
        while not ready(POLL_INTERVAL):
            self.check()
            waited = time.monotonic() - start
            if waited > self.deadline:
                raise RankLost(f"rank {peer} ({name}) was silent for {waited:.0f} s; look at that worker's log, then run again.")
            if waited > self.warn_after and not warned:
                warned = True
                self.on_slow(peer, waited)

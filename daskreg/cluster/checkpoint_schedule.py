"""When a checkpoint is due: at intervals, and never so often that writing takes most of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from daskreg.cluster import timeouts

COMPUTE_PER_WRITE = 4.0  # times as long as it took to write the last checkpoint, ranks compute before the next


class CheckpointSchedule:
    """Decides by the clock of one rank.

    interval: seconds from the end of one checkpoint to the next, 0 for every iteration, None for none;  clock: seconds.
    """

    def __init__(self, interval: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval, self.clock = interval, clock
        self.last, self.write_seconds, self.pending = clock(), 0.0, False

    @property
    def effective_interval(self) -> float:
        """The interval, prolonged where checkpoints take long to write: else a slow disk would leave no time to compute."""
        assert self.interval is not None
        return max(self.interval, COMPUTE_PER_WRITE * self.write_seconds) if self.interval else 0.0

    def due(self, *, level_end: bool = False) -> bool:
        """Whether to ask for a checkpoint; then not again until it is written or the level ends, unless every iteration asks."""
        if self.interval is None or (self.pending and self.interval and not level_end):
            return False
        wanted = min(timeouts.LEVEL_END_CHECKPOINT_AGE, self.effective_interval) if level_end else self.effective_interval
        self.pending = self.clock() - self.last >= wanted
        return self.pending

    def written(self, seconds: float) -> bool:
        """A checkpoint was written in so many seconds; whether that prolongs the interval more than before."""
        before, self.write_seconds = self.effective_interval if self.interval else 0.0, seconds
        self.last, self.pending = self.clock(), False
        return bool(self.interval) and self.effective_interval > max(before, self.interval or 0.0)

"""A run as lines of the log: one a level as it ends, and one for whatever else takes time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from daskreg.engine.report import LevelReport, Observer, Place, Progress
from daskreg.errors import counted

log = logging.getLogger("daskreg")
INTERVAL = 30.0  # seconds between two lines about what goes on
COMPILING_INTERVAL = 10.0  # the same about kernels
COMPILING = "compiling kernels (once on this machine)"
PHASES = {
    "read": "reading the images",
    "search": "searching for the pose on a coarse lattice",
    "measure": "measuring the result",
    "judge": "judging the result",
    "write": "writing the result",
}


def level_line(level: Mapping[str, Any]) -> str:
    """A level that has ended: its losses, iterations and seconds."""
    losses, shape = level["losses"], " x ".join(map(str, level["shape"]))
    change = f"loss {losses[0]:.5f} -> {losses[-1]:.5f}, " if losses else ""
    steps = f"{counted(len(losses), 'iteration')}, {level['seconds']:.2f} s"
    return f"{level['stage']:<10} scale {level['scale']:<2} {shape:>16}  {change}{steps}"


def place_line(place: Place) -> str:
    """Where a run goes on."""
    return f"going on from stage {place.stage}, scale {place.scale}, iteration {place.iteration}"


def compiling_line(kernels: int, most: int | None, seconds: float | None = None) -> str:
    """That kernels are being compiled, how many of how many at most, and for how long."""
    done = f", {kernels} of at most {most}" if most else "" if seconds is None else f", {kernels} so far"
    return COMPILING + done + ("" if seconds is None else f", {seconds:.0f} s")


class Lines(Observer):
    """Writes to the log."""

    def __init__(self) -> None:
        self._told = self._compiling = time.monotonic()
        self._kernels = 0

    def __call__(self, progress: Progress) -> None:
        """A line about a level that takes long."""
        if self._due(INTERVAL):
            p = progress
            log.info(
                "%-10s scale %-2d iteration %d of at most %d, loss %.5f", p.stage, p.scale, p.iteration, p.iterations, p.loss
            )

    def level_ended(self, level: LevelReport) -> None:
        """A line."""
        self._told = time.monotonic()
        log.info("%s", level_line(level.as_dict()))

    def resumed(self, place: Place) -> None:
        """A line."""
        log.info("%s", place_line(place))

    def phase(self, name: str) -> None:
        """A line, for what has no levels."""
        if name in PHASES:
            log.info("%s", PHASES[name])

    def compiling(self, kernels: int, most: int | None = None) -> None:
        """A line for the first, and then for what takes long."""
        if not self._kernels:
            self._told = self._compiling = time.monotonic()
            log.info("%s", compiling_line(kernels, most))
        elif self._due(COMPILING_INTERVAL):
            log.info("%s", compiling_line(kernels, most, time.monotonic() - self._compiling))
        self._kernels = kernels

    def _due(self, interval: float) -> bool:
        now = time.monotonic()
        if now - self._told < interval:
            return False
        self._told = now
        return True

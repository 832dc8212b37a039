"""A run in the cell of a notebook that runs: the loss of every level, throughput, memory of the workers, a link to the dashboard.

The display is made and renewed in the thread that executes the cell, so that it stands below that cell whoever made the client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import Any

from daskreg.engine.report import LevelReport, Observer, Place, Progress
from daskreg.errors import counted
from daskreg.reporting.lines import PHASES, compiling_line, place_line

INTERVAL = 0.5  # seconds between two renewals
WIDTH, HEIGHT = 160, 32  # pixels of a curve
POINTS = 160  # of a curve: more than pixels would not be seen
CELL = "text-align:left;padding:1px 10px 1px 0;white-space:nowrap"


@dataclass
class Curve:
    """The losses of a level that were reported, and when."""

    stage: str
    scale: int
    iterations: int
    done: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    seconds: float | None = None  # once it has ended

    def add(self, iteration: int, loss: float) -> None:
        """One more."""
        self.done = iteration
        self.losses.append((iteration, loss))

    @property
    def speed(self) -> float:
        """Iterations a second."""
        seconds = time.monotonic() - self.begun if self.seconds is None else self.seconds
        return self.done / seconds if seconds > 0 else 0.0

    def cells(self) -> tuple[str, ...]:
        """Of its row in the table."""
        change = f"{self.losses[0][1]:.5f} &rarr; {self.losses[-1][1]:.5f}" if self.losses else ""
        of = f"{self.done}" if self.seconds is not None else f"{self.done} of at most {self.iterations}"
        return escape(self.stage), str(self.scale), of, change, polyline(self.losses), f"{self.speed:.1f}/s"


def polyline(points: Sequence[tuple[int, float]]) -> str:
    """A curve as SVG; empty for fewer than two points."""
    if len(points) < 2:
        return ""
    kept = [*points[:: max(1, len(points) // POINTS)], points[-1]]
    x, y = [p[0] for p in kept], [p[1] for p in kept]
    wide, high = max(x) - min(x) or 1, max(y) - min(y) or 1
    steps = [((a - min(x)) / wide * WIDTH, HEIGHT - 1 - (b - min(y)) / high * (HEIGHT - 2)) for a, b in zip(x, y, strict=True)]
    at = " ".join(f"{right:.1f},{down:.1f}" for right, down in steps)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="loss"><polyline points="{at}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg>'
    )


class NotebookDisplay(Observer):
    """What a run has reported so far, as HTML and as text. show: called with both, to renew the display."""

    def __init__(self, show: Any) -> None:
        self.show, self.begun, self.shown, self.changed = show, time.monotonic(), 0.0, True
        self.state, self.link, self.notes = "starting", "", list[str]()
        self.curves, self.resident = dict[tuple[str, int], Curve](), dict[int, int]()
        self.kernels, self.compiling_since = 0, 0.0
        self.most: int | None = None
        self.tick()

    def __call__(self, progress: Progress) -> None:
        """A point of the level's curve."""
        self._curve(progress.stage, progress.scale, progress.iterations).add(progress.iteration, progress.loss)
        self.changed = True

    def level_ended(self, level: LevelReport) -> None:
        """The level's whole curve."""
        curve = self._curve(level.stage, level.scale, len(level.losses))
        curve.losses, curve.done, curve.seconds = list(enumerate(level.losses, 1)), len(level.losses), level.seconds
        self.changed = True

    def resumed(self, place: Place) -> None:
        """A note."""
        self.notes.append(place_line(place))
        self.changed = True

    def phase(self, name: str) -> None:
        """What is done now."""
        self.state, self.changed = PHASES.get(name, "optimising"), True

    def compiling(self, kernels: int, most: int | None = None) -> None:
        """How many so far."""
        self.compiling_since = self.compiling_since or time.monotonic()
        self.kernels, self.most, self.changed = kernels, most, True

    def memory(self, rank: int, resident: int) -> None:
        """Of a worker."""
        self.resident[rank], self.changed = resident, True

    def dashboard(self, address: str) -> None:
        """A link to it."""
        self.link, self.changed = address, True

    def tick(self) -> None:
        """Renew the display, at most twice a second."""
        if self.changed and time.monotonic() - self.shown >= INTERVAL:
            self.renew()

    def end(self, state: str) -> None:
        """The last state of the display."""
        self.state = state
        self.renew()

    def renew(self) -> None:
        """Show what is known now."""
        self.shown, self.changed = time.monotonic(), False
        self.show(self.html(), self.text())

    def html(self) -> str:
        """A table of the levels with their curves."""
        head = "".join(f'<th style="{CELL}">{h}</th>' for h in ("stage", "scale", "iterations", "loss", "", "speed"))
        rows = "".join(
            "<tr>" + "".join(f'<td style="{CELL}">{c}</td>' for c in curve.cells()) + "</tr>" for curve in self.curves.values()
        )
        lines = [f"<b>daskreg</b>: {escape(self.state)}, {self._seconds:.0f} s", *map(escape, self._remarks())]
        if self.link:
            lines.append(f'<a href="{escape(self.link)}" target="_blank">dashboard</a>')
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        return f"<div>{'<br>'.join(lines)}{table}</div>"

    def text(self) -> str:
        """The same where there is no HTML."""
        levels = [f"{c.stage:<10} scale {c.scale:<2} {counted(c.done, 'iteration')}" for c in self.curves.values()]
        return "\n".join([f"daskreg: {self.state}, {self._seconds:.0f} s", *self._remarks(), *levels])

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.begun

    def _remarks(self) -> list[str]:
        found = list(self.notes)
        if self.kernels:
            found.append(compiling_line(self.kernels, self.most, time.monotonic() - self.compiling_since))
        if self.resident:
            text = ", ".join(f"worker {rank} {size / 2**20:.0f} MiB" for rank, size in sorted(self.resident.items()))
            found.append(f"memory: {text}")
        return found

    def _curve(self, stage: str, scale: int, iterations: int) -> Curve:
        if (stage, scale) not in self.curves:
            self.curves[stage, scale] = Curve(stage, scale, iterations)
        return self.curves[stage, scale]


@contextmanager
def display() -> Iterator[NotebookDisplay]:
    """A display below the cell that runs, renewed until the block ends."""
    output: Any = import_module("IPython.display")
    handle = output.display({"text/plain": "daskreg: starting"}, raw=True, display_id=True)

    def renew(html: str, text: str) -> None:
        output.update_display({"text/html": html, "text/plain": text}, raw=True, display_id=handle.display_id)

    shown = NotebookDisplay(renew)
    try:
        yield shown
    except BaseException as error:
        shown.end(f"stopped ({type(error).__name__})")
        raise
    shown.end("done")

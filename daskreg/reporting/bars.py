"""Progress bars on a terminal, one a level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from daskreg.engine.report import LevelReport, Observer, Place, Progress
from daskreg.reporting.lines import COMPILING, PHASES, place_line


@contextmanager
def bars(console: Console) -> Iterator[Bars]:
    """An observer that draws a progress bar for each level on ``console``."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
               _Speed(), TimeRemainingColumn(compact=True))  # fmt: skip
    with RichProgress(*columns, console=console, refresh_per_second=8, speed_estimate_period=5) as drawn:
        yield Bars(drawn)


class _Speed(ProgressColumn):
    """Iterations a second; empty before the second report."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


class Bars(Observer):
    """A progress bar for each level, in the order in which they first report, and one line for what has none."""

    def __init__(self, drawn: RichProgress) -> None:
        self.drawn, self.tasks = drawn, dict[tuple[str, int], TaskID]()
        self._kernels: TaskID | None = None

    def __call__(self, progress: Progress) -> None:
        """Advance the level's bar."""
        self._advance(progress.stage, progress.scale, progress.iteration, progress.iterations, progress.loss)

    def level_ended(self, level: LevelReport) -> None:
        """The bar is full: a plateau ends a level before its last iteration."""
        if level.losses:
            self._advance(level.stage, level.scale, len(level.losses), len(level.losses), level.losses[-1])

    def resumed(self, place: Place) -> None:
        """A line above the bars."""
        self.drawn.console.print(place_line(place), highlight=False)

    def phase(self, name: str) -> None:
        """A line above the bars."""
        if name in PHASES:
            self.drawn.console.print(PHASES[name], highlight=False)

    def compiling(self, kernels: int, most: int | None = None) -> None:
        """How many so far."""
        if self._kernels is None:
            self._kernels = self.drawn.add_task(COMPILING, total=most, text="")
        self.drawn.update(self._kernels, completed=kernels, total=most, text="at most" if most else "")

    def _advance(self, stage: str, scale: int, done: int, of: int, loss: float) -> None:
        key, text = (stage, scale), f"loss {loss:.5f}"
        if key not in self.tasks:
            self.tasks[key] = self.drawn.add_task(f"{stage:<10} scale {scale}", total=of, text=text)
        self.drawn.update(self.tasks[key], completed=done, total=of, text=text)

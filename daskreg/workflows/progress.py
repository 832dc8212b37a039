"""Progress bars on a terminal, one a level, and the summary of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from daskreg.engine.report import Progress
from daskreg.workflows.result import Report


@contextmanager
def shown() -> Iterator[Callable[[Progress], None] | None]:
    """A callback that draws progress bars; None where standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with lines(Console(stderr=True)) as watch:
        yield watch


@contextmanager
def lines(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A callback that draws a progress bar for each level on ``console``."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.5f}"),
               _Speed(), TimeRemainingColumn(compact=True))  # fmt: skip
    with Bars(*columns, console=console, refresh_per_second=8, speed_estimate_period=5) as bars:
        yield _Lines(bars)


class _Speed(ProgressColumn):
    """Iterations a second; empty before the second report."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


class _Lines:
    """A progress bar for each level, in the order in which they first report."""

    def __init__(self, bars: Bars) -> None:
        self.bars, self.tasks = bars, dict[tuple[str, int], TaskID]()

    def __call__(self, now: Progress) -> None:
        """Advance the level's bar."""
        key = now.stage, now.scale
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(f"{now.stage:<10} scale {now.scale}", total=now.iterations, loss=now.loss)
        self.bars.update(self.tasks[key], completed=now.iteration, total=now.iterations, loss=now.loss)


def summary(path: str, report: Report) -> list[str]:
    """What to print when a run is done."""
    before, after = report["metrics"]["before"], report["metrics"]["after"]
    lines = [_level(level) for level in report["levels"]]
    lines.append(
        f"correlation {before['ncc']:.3f} -> {after['ncc']:.3f}, mutual information {before['mi']:.3f} -> {after['mi']:.3f}"
    )
    if "jacobian" in report["metrics"]:
        j = report["metrics"]["jacobian"]
        lines.append(f"folded voxels {j['folded_percent']:.4f} %, Jacobian {j['smallest']:.2f} to {j['largest']:.2f}")
    seconds, peak = report["seconds"], report["machine"]["peak_bytes"] / 2**20
    lines.append(
        f"{seconds['total']:.1f} s ("
        + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items() if k != "total")
        + f"), {peak:.0f} MiB"
    )
    return [*lines, f"result: {path}"]


def _level(level: dict[str, Any]) -> str:
    losses, shape = level["losses"], " x ".join(map(str, level["shape"]))
    change = f"loss {losses[0]:.5f} -> {losses[-1]:.5f}, " if losses else ""
    steps = f"{len(losses)} iterations, {level['seconds']:.2f} s"
    return f"{level['stage']:<10} scale {level['scale']:<2} {shape:>16}  {change}{steps}"

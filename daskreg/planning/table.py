"""A plan for people: what every level costs on every worker."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from daskreg.config import Deformable, Optimised
from daskreg.planning.memory import checkpoint_bytes, disk_bytes

if TYPE_CHECKING:
    from daskreg.planning.plan import Level, Plan

# measured on two cores of an AMD EPYC (benchmarks/results: estimate.json; scaling.json, parts strong and link)
SECONDS = {"mse": 0.041, "lncc": 0.053, "mi": 0.070}  # a deformable iteration, of a core and megavoxel
LAUNCH = 1.0e-3  # an iteration of a level of no size
LINEAR = 1.3  # of SECONDS for a look of a linear stage
LOOKS = 2  # of a linear stage an iteration: two to four while it goes on, but it mostly ends early by itself
LINK = 1.7e9  # bytes a second between two workers, TCP within a machine
LATENCY = 5.0e-4  # seconds of a small message; halos of moved and g are waited for, and two sums


def lines(plan: Plan, cores: int | None = None) -> list[str]:
    """One line a level, then what the whole run needs; ``cores``: of a worker, its share of this machine by default."""
    share = cores or max(1, len(os.sched_getaffinity(0)) // plan.workers)
    head = f"{'stage':<11}{'scale':>5}{'fixed':>17}{'moving':>17}{'iter':>6}{'blocks':>13}  {'residency':<10}"
    rows = [head + f"{'images':>9}{'moving':>9}{'fields':>9}{'wire/iter':>11}{'time':>9}"]
    for k, levels in enumerate(plan.levels):
        rows += [_line(plan, k, level, share) for level in levels] or [f"{plan.config.stages[k].name:<11} on worker 0"]
    total = sum(seconds(plan, k, level, share) for k, levels in enumerate(plan.levels) for level in levels)
    disk = disk_bytes(plan)
    return [
        *rows,
        f"memory of a worker: at most {size(plan.peak_bytes)}" + (f" of {size(plan.memory)}" if plan.memory else ""),
        f"disk: reads {size(disk.read)}, writes {size(disk.written)}, checkpoints up to {size(checkpoint_bytes(plan))}",
        f"time: about {duration(total)} on {_many(plan.workers, 'worker')} of {_many(share, 'core')}, no level stopping early; "
        "reading and writing apart",
    ]


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def seconds(plan: Plan, stage: int, level: Level, cores: int) -> float:
    """Estimated time of a level: the largest block's voxels, what it sends, and how often it waits."""
    kind = plan.config.stages[stage]
    assert isinstance(kind, Optimised)
    voxels = max(level.partition.lengths) * level.fixed.shape[1] * level.fixed.shape[2] / 1e6
    passes, share = (1, 1.0) if isinstance(kind, Deformable) else (LOOKS, LINEAR)
    work = SECONDS[kind.similarity.kind] * share * voxels / cores + LAUNCH
    waits = 2 + 2 * math.ceil(math.log2(plan.workers)) if plan.workers > 1 else 0
    return level.iterations * passes * (work + plan.wire(stage, level) / LINK + waits * LATENCY)


def _line(plan: Plan, stage: int, level: Level, cores: int) -> str:
    t, name = plan.tally(stage, level), plan.config.stages[stage].name
    fixed, moving = ("x".join(map(str, g.shape)) for g in (level.fixed, level.moving))
    working = [n for n in level.partition.lengths if n]
    blocks = f"{len(working)} of {max(working)}"
    start = f"{name:<11}{level.scale:>5}{fixed:>17}{moving:>17}{level.iterations:>6}{blocks:>13}  "
    residency = level.residency if plan.workers > 1 else "-"
    return (
        start
        + f"{residency:<10}{size(t.images):>9}{size(t.moving):>9}{size(t.fields):>9}{size(plan.wire(stage, level)):>11}"
        + (f"{duration(seconds(plan, stage, level, cores)):>9}")
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""Human-readable table of a plan: what every level costs on every worker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from daskreg import machine
from daskreg.config import Deformable, Optimised, Search
from daskreg.planning.layout import SOURCE, Layout, Level
from daskreg.planning.memory import checkpoint_bytes, disk_bytes, elsewhere, image_bytes, level_memory, peak_bytes, swept_bytes
from daskreg.planning.slabs import Reaches
from daskreg.planning.source import source_passes
from daskreg.planning.traffic import most_sent

EVALUATION = 1.3  # time of a linear stage's evaluation, in deformable iterations
SWEPT_EVALUATION = 3.0  # time of an evaluation that reads its images slab by slab, in those of one in memory
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
PLACES = {"host": "in the machine's memory", "disk": "on disk"}
EVALUATIONS = 2  # of a linear stage an iteration: two to four while it goes on, but it mostly converges early


@dataclass(frozen=True)
class Speeds:
    """Speeds of a device beside those that a similarity states: seconds of an iteration (launch) and of a linear stage's
    evaluation at a level of no size;  link: bytes a second between two workers;  latency: seconds of a message that is waited
    for.
    """

    name: str
    launch: float
    evaluation: float
    link: float
    latency: float
    tiers: Mapping[str, float]  # bytes a second to and from fields elsewhere: assumptions


SPEEDS = {
    # two cores of an AMD EPYC, TCP within a machine (benchmarks/results: estimate.json; scaling.json, parts strong and link)
    "cpu": Speeds("core", 1.0e-3, 1.0e-3, 1.7e9, 5.0e-4, {"host": 6e9, "disk": 1e9}),
    # one H200 (gpu_iterations.json, float32, 512^3); a linear stage decides on the host; between GPUs an assumption, not measured
    "cuda": Speeds("GPU like an H200", 2.5e-4, 3.0e-3, 2.0e11, 1.0e-4, {"host": 5e10, "disk": 2e9}),
}


def lines(plan: Layout, cores: int | None = None, device: str = "cpu") -> list[str]:
    """One line a level, then what the whole run needs; ``cores``: of a worker, its share of this machine by default."""
    share = 1 if device == "cuda" else cores or max(1, machine.cores().value // plan.workers)
    head = f"{'stage':<11}{'scale':>5}{'fixed':>17}{'moving':>17}{'iter':>6}{'blocks':>13}  {'residency':<10}"
    rows = [head + f"{'images':>9}{'moving':>9}{'fields':>9}{'wire/iter':>11}{'time':>9}"]
    for k, levels in enumerate(plan.levels):
        rows += [row for lv in levels for row in _rows(plan, k, lv, share, device)] or [
            f"{plan.config.stages[k].name:<11} on worker 0"
        ]
    total = sum(seconds(plan, k, level, share, device) for k, levels in enumerate(plan.levels) for level in levels)
    disk, search = disk_bytes(plan), "the search, " * any(isinstance(s, Search) for s in plan.config.stages)
    return [
        *rows,
        f"fixed, moving: voxels, z x y x x; blocks: workers, and the most planes of one, along {'zyx'[plan.orders[0][0]]}; "
        "images, moving, fields: memory of a worker; wire: what it sends",
        f"memory of a {'GPU' if device == 'cuda' else 'worker'}: at most {size(peak_bytes(plan))}"
        + (f" of {size(plan.memory)}" if plan.memory else ""),
        *_elsewhere(plan),
        *_from_source(plan),
        f"disk: reads {size(disk.read)}, writes {size(disk.written)}, checkpoints up to {size(checkpoint_bytes(plan))}",
        f"time: about {duration(total)} on {_many(plan.workers, 'worker')} of {_many(share, SPEEDS[device].name)}, "
        f"no level stopping early; {search}reading, writing and compiling apart",
    ]


def _elsewhere(plan: Layout) -> list[str]:
    host, scratch = elsewhere(plan)
    both = [(level.in_voxels(s), level) for s, levels in zip(plan.config.stages, plan.levels, strict=True) for level in levels]
    swept = [(s, level) for s, level in both if level.state == "disk"]
    written = sum(level.iterations * swept_bytes(plan, s, level) for s, level in swept if isinstance(s, Deformable))
    rows = [f"host memory of a worker: {size(host)} for fields{' and images' * (plan.images == 'host')}"] if host else []
    twice = f"with a checkpoint every iteration up to {size(2 * scratch)}"
    return rows + ([f"scratch of a worker: {size(scratch)} ({twice}), up to {size(written)} written in all"] if scratch else [])


def _from_source(plan: Layout) -> list[str]:
    """How often images are read that stay in their files."""
    if plan.images != SOURCE:
        return []
    parts = []
    for role, (name, grid) in enumerate((("fixed", plan.fixed), ("moving", plan.moving))):
        passes = source_passes(plan, role)[1]
        parts.append(f"{name} in {passes:.3g} passes of {size(grid.size * plan.encodings[role].itemsize)}")
    return [f"images: stay in their files ({SOURCE}) and are decoded as they are needed: {', '.join(parts)}"]


def _many(n: int, what: str) -> str:
    first, _, rest = what.partition(" ")
    return f"{n} {first}{'s' * (n != 1)}{' ' * bool(rest)}{rest}"


def seconds(plan: Layout, stage: int, level: Level, cores: int, device: str = "cpu") -> float:
    """Estimated time of a level: the largest block's voxels, what it sends, and how often it waits."""
    kind, speeds = level.in_voxels(plan.config.stages[stage]), SPEEDS[device]
    assert isinstance(kind, Optimised)
    voxels = max(level.partition.lengths) * level.fixed.shape[1] * level.fixed.shape[2] / 1e6
    deformable = isinstance(kind, Deformable)
    passes, share, launch = (1, 1.0, speeds.launch) if deformable else (EVALUATIONS, EVALUATION, speeds.evaluation)
    work = kind.similarity.seconds[device] * share * voxels / cores + launch
    # halos of moved and g are waited for, and two sums
    waits = 2 + 2 * math.ceil(math.log2(plan.workers)) if plan.workers > 1 else 0
    moved = 0.0
    if isinstance(kind, Deformable) and level.state != "device":
        moved = 2 * swept_bytes(plan, kind, level) / speeds.tiers[level.state]
        work *= (level.slab + Reaches.of(kind).total) / level.slab  # what is computed again between slabs
    if level.images != "device":
        moved += image_bytes(plan, kind, level) / speeds.tiers[level.images]
        work *= 1 if deformable else SWEPT_EVALUATION
    return level.iterations * passes * (work + moved + most_sent(plan, stage, level) / speeds.link + waits * speeds.latency)


def _rows(plan: Layout, stage: int, level: Level, cores: int, device: str) -> list[str]:
    """A level's line, and where its fields and images are if not in the device's memory."""
    rows, kind = [_line(plan, stage, level, cores, device)], level.in_voxels(plan.config.stages[stage])
    if level.state != "device" and isinstance(kind, Deformable):
        moved = swept_bytes(plan, kind, level)
        several = f", {kind.iterations_per_sweep} iterations a sweep" if kind.iterations_per_sweep > 1 else ""
        way = f"{size(moved)} read and {size(moved)} written an iteration{several}"
        rows.append(f"{'':<11}fields of that scale {PLACES[level.state]}, in slabs of {level.slab} planes: {way}")
    if level.images != "device":
        assert isinstance(kind, Optimised)
        read = f"{size(image_bytes(plan, kind, level))} read an {'iteration' if level.state != 'device' else 'evaluation'}"
        rows.append(f"{'':<11}images of that scale {PLACES[level.images]}, in slabs of {level.slab} planes: {read}")
    return rows


def _line(plan: Layout, stage: int, level: Level, cores: int, device: str) -> str:
    t, name = level_memory(plan, stage, level), plan.config.stages[stage].name
    fixed, moving = ("x".join(map(str, shape)) for shape in plan.stored_shapes(level.fixed, level.moving))
    working = [n for n in level.partition.lengths if n]
    blocks = f"{len(working)} of {max(working)}"
    start = f"{name:<11}{level.scale:>5}{fixed:>17}{moving:>17}{level.iterations:>6}{blocks:>13}  "
    residency = level.residency if plan.workers > 1 else "-"
    return (
        start
        + f"{residency:<10}{size(t.images):>9}{size(t.moving):>9}{size(t.fields):>9}{size(most_sent(plan, stage, level)):>11}"
        + (f"{duration(seconds(plan, stage, level, cores, device)):>9}")
    )


def size(count: float, *, up: bool = False) -> str:
    """Human-readable bytes;  up: no fewer than there are, for what has to be made room for."""
    power, digits = _unit(count)
    shown = (rounded_up(count) if up else count) / 1024.0**power
    return f"{shown:.{digits}f} {UNITS[power]}"


def rounded_up(count: float) -> int:
    """As many bytes as ``size(count, up=True)`` says."""
    power, digits = _unit(count)
    tenths: float = math.ceil(count / 1024.0**power * 10**digits) / 10**digits
    return math.ceil(tenths * 1024.0**power)


def _unit(count: float) -> tuple[int, int]:
    """Of a number of bytes, as a power of 1024, and digits behind the point."""
    power = next((k for k in range(len(UNITS) - 1) if count < 1024.0 ** (k + 1)), len(UNITS) - 1)
    return power, 0 if power == 0 or (count >= 10 * 1024.0**power and UNITS[power] != "TiB") else 1


def duration(seconds: float) -> str:
    """Human-readable seconds."""
    if seconds < 0.0995:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

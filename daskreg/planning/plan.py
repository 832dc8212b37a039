"""What will run: every level of every stage, decided before a voxel is read. A value, and small."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from daskreg.config import Config, Deformable, Optimised
from daskreg.errors import PlanTooLarge
from daskreg.grid import MINIMUM_PLANES, Grid, Index, Partition, level_factors
from daskreg.kernels.smoothing.cpu import radius_of
from daskreg.planning.memory import Tally, input_bytes, level_tally, output_bytes
from daskreg.planning.table import lines
from daskreg.planning.wire import wire
from daskreg.similarity import make

RESIDENCIES = ("replicate", "window", "ring")


@dataclass(frozen=True)
class Level:
    """One level of a stage: how both images are shrunk, the grids that gives, and who has which planes of them.

    partition: of the fixed level;  shards: of the moving level;  residency: where a rank finds the moving planes it reads;
    halo: planes around its own that a rank's arrays hold.
    """

    scale: int
    fixed_factors: Index
    moving_factors: Index
    fixed: Grid
    moving: Grid
    iterations: int
    partition: Partition
    shards: Partition
    residency: str = "replicate"
    halo: int = 0

    @classmethod
    def alone(cls, scale: int, f: Index, m: Index, fixed: Grid, moving: Grid, iterations: int) -> Level:
        """For one rank, of the full-resolution grids ``fixed`` and ``moving``."""
        a, b = fixed.coarsen(f), moving.coarsen(m)
        return cls(scale, f, m, a, b, iterations, Partition.of(a.shape[0], 1), Partition.of(b.shape[0], 1))


@dataclass(frozen=True)
class Plan:
    """Both grids in one unit, the configuration, and the levels of each stage (none for moments and search).

    masks: whether fixed and moving have one;  workers: ranks;  memory: bytes each may use, None for no limit;
    fewest: planes that a rank's slab has at least;  unpacked: bytes of the largest chunk of each image;  process: bytes of a
    worker's process without arrays.
    """

    fixed: Grid
    moving: Grid
    config: Config
    levels: tuple[tuple[Level, ...], ...]
    masks: tuple[bool, bool] = (False, False)
    workers: int = 1
    memory: int | None = None
    fewest: int = MINIMUM_PLANES
    unpacked: tuple[int, int] = (0, 0)
    process: int = 0

    @property
    def deformable(self) -> bool:
        """Whether a displacement field comes out."""
        return any(stage.name == "deformable" for stage in self.config.stages)

    @cached_property
    def partition(self) -> Partition:
        """Of the fixed image at full resolution."""
        return Partition.of(self.fixed.shape[0], self.workers, self.fewest)

    @cached_property
    def shards(self) -> Partition:
        """Of the moving image at full resolution."""
        return Partition.of(self.moving.shape[0], self.workers, self.fewest)

    @property
    def full(self) -> Level:
        """Both images at full resolution, as the result is measured and written."""
        whole = (1, 1, 1)
        return Level(1, whole, whole, self.fixed, self.moving, 0, self.partition, self.shards)

    @property
    def rims(self) -> tuple[int, int]:
        """Planes of fixed and moving image that a rank reads around its own: shrinking and the finest level's halo need them."""
        if self.workers == 1:
            return 0, 0
        levels = [level for stage in self.levels for level in stage]
        f = max((2 * lv.fixed_factors[0] + 2 for lv in levels if max(lv.fixed_factors) > 1), default=0)
        m = max((2 * lv.moving_factors[0] + 2 for lv in levels if max(lv.moving_factors) > 1), default=0)
        return max([f, *(lv.halo for lv in levels)]), m

    def tally(self, stage: int, level: Level) -> Tally:
        """Projected bytes of the largest rank while ``level`` runs."""
        return level_tally(self, self.config.stages[stage], level)

    def wire(self, stage: int, level: Level) -> int:
        """Bytes that the rank that sends most sends in an iteration."""
        kind = self.config.stages[stage]
        assert isinstance(kind, Optimised)
        return max(sent.total for sent in wire(self, kind, level))

    @property
    def peak_bytes(self) -> int:
        """Projected peak of a worker's process: arrays of the largest level, and what any process needs."""
        tallies = [self.tally(k, level).total for k, levels in enumerate(self.levels) for level in levels]
        return max([*tallies, input_bytes(self), output_bytes(self)])

    def lines(self, device: str = "cpu") -> list[str]:
        """A table for people: one line a level, then memory, disk and time; ``device``: cpu or cuda, whose speed is assumed."""
        return lines(self, device=device)

    def validate(self, memory: int, source: str = "") -> None:
        """Raise PlanTooLarge when a worker needs more than ``memory`` bytes; source: what limits them."""
        if self.peak_bytes > memory:
            shapes = f"fixed {self.fixed.shape}, moving {self.moving.shape}, {self.workers} worker{'s' * (self.workers > 1)}"
            raise PlanTooLarge(
                f"this run needs {self.peak_bytes / 2**30:.1f} GiB a worker ({shapes}), "
                f"a worker has {memory / 2**30:.1f} GiB{f' ({source})' * bool(source)}; {self.remedy(memory)}"
            )

    def remedy(self, memory: int) -> str:
        """What would fit."""
        for workers in range(self.workers + 1, 257):
            given: dict[str, Any] = {"masks": self.masks, "unpacked": self.unpacked, "memory": memory, "process": self.process}
            more = make_plan(self.fixed, self.moving, self.config, workers=workers, **given)
            if more.peak_bytes <= memory:
                return (
                    f"use {workers} workers of that memory, or drop the finest scale from the stages, "
                    "or read a coarser level of the images ('::level=1')."
                )
        return "drop the finest scale from the stages, read a coarser level of the images ('::level=1'), or use larger machines."


def make_plan(
    fixed: Grid,
    moving: Grid,
    config: Config,
    *,
    masks: tuple[bool, bool] = (False, False),
    workers: int = 1,
    memory: int | None = None,
    residency: str = "auto",
    fewest: int = MINIMUM_PLANES,
    unpacked: tuple[int, int] = (0, 0),
    process: int = 0,
) -> Plan:
    """Levels of every stage, cut into a block a worker. Raises UnitsError when the images' units cannot be brought together.

    residency: of the moving image, ``auto`` takes the first of replicate, window and ring that fits into ``memory`` bytes;
    masks, fewest, unpacked, process: see ``Plan``.
    """
    moving = moving.to_unit(fixed.unit)
    cut = _Cut(workers, fewest, "replicate" if residency == "auto" else residency)
    levels = tuple(cut.levels(fixed, moving, s) if isinstance(s, Optimised) else () for s in config.stages)
    plan = Plan(fixed, moving, config, levels, masks, workers, memory, fewest, unpacked, process)
    return _settled(plan) if residency == "auto" and workers > 1 and memory is not None else plan


def _settled(plan: Plan) -> Plan:
    """Each level with the first residency that fits; where none does, with that of the fewest bytes."""
    return replace(plan, levels=tuple(tuple(_fitting(plan, k, lv) for lv in stage) for k, stage in enumerate(plan.levels)))


def _fitting(plan: Plan, stage: int, level: Level) -> Level:
    assert plan.memory is not None
    needs = {r: plan.tally(stage, replace(level, residency=r)).total for r in RESIDENCIES}
    return replace(level, residency=next((r for r in RESIDENCIES if needs[r] <= plan.memory), min(needs, key=needs.__getitem__)))


@dataclass(frozen=True)
class _Cut:
    workers: int
    fewest: int
    residency: str

    def levels(self, fixed: Grid, moving: Grid, stage: Optimised) -> tuple[Level, ...]:
        return tuple(self._level(fixed, moving, stage, s, n) for s, n in zip(stage.scales, stage.iterations, strict=True))

    def _level(self, fixed: Grid, moving: Grid, stage: Optimised, scale: int, iterations: int) -> Level:
        f, m = level_factors(fixed, moving, scale)
        a, b = fixed.coarsen(f), moving.coarsen(m)
        slabs, shards = (Partition.of(g.shape[0], self.workers, self.fewest) for g in (a, b))
        return Level(scale, f, m, a, b, iterations, slabs, shards, self.residency, halo_of(stage))


def halo_of(stage: Optimised) -> int:
    """Planes around its own that a rank needs of one array or another."""
    window = make(stage.similarity).reach
    if not isinstance(stage, Deformable):
        return window
    warp = radius_of(stage.smooth_warp)
    return max(window, radius_of(stage.smooth_gradient) + warp, warp + 1)


def by(shape: Index) -> str:
    """Voxels for people."""
    return " x ".join(map(str, shape))


def voxels(grid: Grid) -> str:
    """Shape and size for a log line."""
    return f"{by(grid.shape)} ({math.prod(grid.shape) / 1e6:.1f} Mvoxel)"

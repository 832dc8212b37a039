"""What will run: every level of every stage, decided before a voxel is read. A value, and small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daskreg.config import Config, Optimised
from daskreg.errors import PlanTooLarge
from daskreg.grid import Grid, Index, level_factors

BYTES_A_VOXEL = 60  # u, m, v and two buffers of three float32 each
IMAGE_BYTES = 4  # float32
PROCESS_BYTES = 400 << 20  # interpreter, libraries, compiled kernels


@dataclass(frozen=True)
class Level:
    """One level of a stage: how both images are shrunk, and the grids that gives."""

    scale: int
    fixed_factors: Index
    moving_factors: Index
    fixed: Grid
    moving: Grid
    iterations: int


@dataclass(frozen=True)
class Plan:
    """Both grids in one unit, the configuration, and the levels of each stage (none for moments and search)."""

    fixed: Grid
    moving: Grid
    config: Config
    levels: tuple[tuple[Level, ...], ...]
    masks: int = 0

    @property
    def deformable(self) -> bool:
        """Whether a displacement field comes out."""
        return any(stage.name == "deformable" for stage in self.config.stages)

    def level_bytes(self, stage: int, level: Level) -> int:
        """Projected bytes of arrays while ``level`` runs."""
        full = (self.fixed.size + self.moving.size) * IMAGE_BYTES
        images = 0 if max(level.fixed_factors) == 1 else level.fixed.size * IMAGE_BYTES
        images += 0 if max(level.moving_factors) == 1 else level.moving.size * IMAGE_BYTES
        fields = BYTES_A_VOXEL if self.config.stages[stage].name == "deformable" else 0
        return full + images + level.fixed.size * (fields + IMAGE_BYTES * (1 + self.masks))

    @property
    def peak_bytes(self) -> int:
        """Projected peak of the process: arrays of the largest level, and what any process needs."""
        sizes = [self.level_bytes(k, level) for k, levels in enumerate(self.levels) for level in levels]
        output = (self.fixed.size * 4 + self.moving.size) * IMAGE_BYTES
        return max([*sizes, output]) + PROCESS_BYTES

    def validate(self, memory: int) -> None:
        """Raise PlanTooLarge, before anything is read, when the run needs more than ``memory`` bytes."""
        if self.peak_bytes > memory:
            raise PlanTooLarge(
                f"this run needs {self.peak_bytes / 2**30:.1f} GiB (fixed {self.fixed.shape}, moving {self.moving.shape}), "
                f"this machine has {memory / 2**30:.1f} GiB; drop the finest scale from the stages, read a coarser level of the "
                "images ('::level=1'), or use a larger machine."
            )

    def lines(self) -> list[str]:
        """A table for people: one line a level."""
        rows = [f"{'stage':<12}{'scale':>6}{'fixed voxels':>20}{'moving voxels':>20}{'iterations':>12}{'memory':>12}"]
        for k, levels in enumerate(self.levels):
            name = self.config.stages[k].name
            rows += [
                f"{name:<12}{lv.scale:>6}{_by(lv.fixed.shape):>20}{_by(lv.moving.shape):>20}{lv.iterations:>12}"
                f"{self.level_bytes(k, lv) / 2**20:>8.0f} MiB"
                for lv in levels
            ] or [f"{name:<12}"]
        return [*rows, f"peak memory of the process at most about {self.peak_bytes / 2**20:.0f} MiB"]


def make_plan(fixed: Grid, moving: Grid, config: Config, masks: int = 0) -> Plan:
    """Levels of every stage. Raises UnitsError when the images' units cannot be brought together."""
    moving = moving.to_unit(fixed.unit)
    levels = tuple(_levels(fixed, moving, stage) if isinstance(stage, Optimised) else () for stage in config.stages)
    return Plan(fixed, moving, config, levels, masks)


def _levels(fixed: Grid, moving: Grid, stage: Optimised) -> tuple[Level, ...]:
    return tuple(_level(fixed, moving, s, n) for s, n in zip(stage.scales, stage.iterations, strict=True))


def _level(fixed: Grid, moving: Grid, scale: int, iterations: int) -> Level:
    f, m = level_factors(fixed, moving, scale)
    return Level(scale, f, m, fixed.coarsen(f), moving.coarsen(m), iterations)


def _by(shape: Index) -> str:
    return " x ".join(map(str, shape))


def voxels(grid: Grid) -> str:
    """Shape and size for a log line."""
    return f"{_by(grid.shape)} ({math.prod(grid.shape) / 1e6:.1f} Mvoxel)"

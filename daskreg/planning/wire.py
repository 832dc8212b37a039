"""Bytes that ranks send each other in an iteration, and the planes of the moving image that a block is taken to reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskreg.config import MI, Deformable, Moments, Optimised, Search, Stage
from daskreg.grid import Partition, Span
from daskreg.kernels.smoothing.cpu import radius_of
from daskreg.similarity import make
from daskreg.transforms.linear import index_map, translation

if TYPE_CHECKING:
    from daskreg.planning.plan import Level, Plan

VALUE, VECTOR = 4, 12  # float32, three of them
HALF = 2  # float16, bfloat16
DRIFT = 16  # planes that a block's reach is taken to leave its affine image by
NUMBER = 8  # float64, int64
EVERY = 8  # iterations from one measurement of where blocks reach to the next


@dataclass(frozen=True)
class Wire:
    """Bytes that a rank sends in an iteration: planes around blocks, planes of the moving image, sums."""

    halo: int = 0
    ring: int = 0
    sums: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.halo + self.ring + self.sums


def wire(plan: Plan, stage: Optimised, level: Level) -> list[Wire]:
    """By rank; for a linear stage at each place that it looks at. Windows move seldom, and count as nothing."""
    if plan.workers == 1:
        return [Wire()]
    sums, needs = _sums(plan, stage, level), reached(plan, level)
    return [
        Wire(_halo(plan, stage, level, r), _ring(plan, stage, level, needs, r) if level.residency == "ring" else 0, sums)
        for r in range(plan.workers)
    ]


def _halo(plan: Plan, stage: Optimised, level: Level, rank: int) -> int:
    plane, partition = level.fixed.shape[1] * level.fixed.shape[2], level.partition
    return plane * sum(_lent(partition, rank, reach) * size for reach, size in _exchanges(plan, stage))


def _exchanges(plan: Plan, stage: Optimised) -> Iterator[tuple[int, int]]:
    """Planes around a block, and bytes a voxel of them: moved with its weights, the gradient, the displacement."""
    yield make(stage.similarity).reach, VALUE * (1 + plan.masks[1])
    if isinstance(stage, Deformable):
        gradient, warp = radius_of(stage.smooth_gradient), radius_of(stage.smooth_warp)
        yield gradient + warp, 3 * value_of(stage)
        yield warp + 1, VECTOR


def value_of(stage: Stage) -> int:
    """Bytes of a number of an image or a gradient."""
    return HALF if isinstance(stage, Deformable) and stage.storage == "mixed" else VALUE


def _lent(partition: Partition, rank: int, reach: int) -> int:
    """Planes of a rank that the others hold as their halo, each as often as it is held."""
    return sum(len(partition[rank] & partition.around(r, reach)) for r in range(len(partition.slabs)) if r != rank)


def _ring(plan: Plan, stage: Optimised, level: Level, needs: list[Span], rank: int) -> int:
    plane, mine = level.moving.shape[1] * level.moving.shape[2], level.shards[rank]
    planes = sum(len(mine & need) for r, need in enumerate(needs) if r != rank)
    return planes * plane * (value_of(stage) + VALUE * plan.masks[1])


def _sums(plan: Plan, stage: Optimised, level: Level) -> int:
    """What goes to all: sums of each plane or the joint histogram, then what the step, or the next place, is agreed upon with.

    Of the two numbers a plane that say where blocks reach, once in ``EVERY`` iterations, an iteration's part.
    """
    planes = max(level.partition.lengths)
    loss = stage.similarity.bins**2 if isinstance(stage.similarity, MI) else 2 * planes
    if isinstance(stage, Deformable):
        step, reach = 2, 2 * planes if level.residency != "replicate" else 0
    else:
        step, reach = 17 + 12 * planes, 0
    return (plan.workers - 1) * (NUMBER * (loss + step) + NUMBER * reach // EVERY)


def reached(plan: Plan, level: Level) -> list[Span]:
    """Planes of the moving level that each block is taken to read: the headers' image of the slab, and DRIFT around it.

    Where the first stage brings the centres together, as after it.
    """
    start = np.eye(4)
    if isinstance(plan.config.stages[0], Moments | Search):
        start = translation(plan.moving.center - plan.fixed.center)
    row = index_map(start, level.fixed, level.moving)[0]
    _, y, x = level.fixed.shape
    return [_image(row, slab, y, x) & level.shards.whole if len(slab) else Span(0, 0) for slab in level.partition.slabs]


def _image(row: np.ndarray, slab: Span, y: int, x: int) -> Span:
    """Planes between which the corners of a slab fall."""
    ends = [(row[0] * slab.start, row[0] * (slab.stop - 1)), (0.0, row[1] * (y - 1)), (0.0, row[2] * (x - 1))]
    low, high = (float(row[3]) + sum(pick(e) for e in ends) for pick in (min, max))
    return Span(math.floor(low) - DRIFT, math.floor(high) + 2 + DRIFT)

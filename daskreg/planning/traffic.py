"""Bytes that ranks send each other in an iteration, and the planes of the moving image that a block is taken to reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskreg.config import Deformable, Moments, Optimised, Search, Stage
from daskreg.deferred import DeferredModule
from daskreg.grid import Partition, Span
from daskreg.planning.layout import REACH_INTERVAL, Layout, Level
from daskreg.transforms.linear import index_map, translation

if TYPE_CHECKING:
    from daskreg.kernels.smoothing import cpu as smoothing
else:
    smoothing = DeferredModule("daskreg.kernels.smoothing.cpu")

VALUE, VECTOR = 4, 12  # float32, three of them
HALF = 2  # float16, bfloat16
ASSUMED_DRIFT = 16  # planes by which a block's reach is taken to exceed its affine image
NUMBER = 8  # float64, int64


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in an iteration: planes around blocks, planes of the moving image, sums."""

    halo: int = 0
    ring: int = 0
    sums: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.halo + self.ring + self.sums


def traffic(plan: Layout, stage: Optimised, level: Level) -> list[Traffic]:
    """By rank; for a linear stage of each evaluation. Windows move seldom, and are not counted."""
    if plan.workers == 1:
        return [Traffic()]
    sums, needs = _sums(plan, stage, level), reached(plan, level)
    return [
        Traffic(_halo(plan, stage, level, r), _ring(plan, stage, level, needs, r) if level.residency == "ring" else 0, sums)
        for r in range(plan.workers)
    ]


def most_sent(plan: Layout, index: int, level: Level) -> int:
    """Bytes that the rank that sends most sends in an iteration of the stage with an index."""
    stage = level.in_voxels(plan.config.stages[index])
    assert isinstance(stage, Optimised)
    return max(sent.total for sent in traffic(plan, stage, level))


def _halo(plan: Layout, stage: Optimised, level: Level, rank: int) -> int:
    plane, partition = level.fixed.shape[1] * level.fixed.shape[2], level.partition
    return plane * sum(_lent(partition, rank, reach) * size for reach, size in _exchanges(plan, stage))


def _exchanges(plan: Layout, stage: Optimised) -> Iterator[tuple[int, int]]:
    """Planes around a block, and bytes a voxel of them: moved with its weights, the gradient, the displacement."""
    yield stage.similarity.reach, VALUE * (1 + plan.masks[1])
    if isinstance(stage, Deformable):
        taps = smoothing.gaussian_radius(stage.smooth_gradient)
        yield taps + stage.model.direction_reach(stage.smooth_warp), 3 * value_bytes(stage)
        yield stage.model.reach(stage.smooth_warp), VECTOR


def value_bytes(stage: Stage) -> int:
    """Bytes of a number of an image or a gradient."""
    return HALF if isinstance(stage, Deformable) and stage.storage == "mixed" else VALUE


def _lent(partition: Partition, rank: int, reach: int) -> int:
    """Planes of a rank that the others hold as their halo, each as often as it is held."""
    return sum(len(partition[rank] & partition.around(r, reach)) for r in range(len(partition.slabs)) if r != rank)


def _ring(plan: Layout, stage: Optimised, level: Level, needs: list[Span], rank: int) -> int:
    plane, mine = level.moving.shape[1] * level.moving.shape[2], level.shards[rank]
    planes = sum(len(mine & need) for r, need in enumerate(needs) if r != rank)
    return planes * plane * (value_bytes(stage) + VALUE * plan.masks[1])


def _sums(plan: Layout, stage: Optimised, level: Level) -> int:
    """What goes to all: sums of each plane or the joint histogram, then what the step, or the next matrix, is agreed upon with.

    Of the two numbers a plane that say where blocks reach, once in ``REACH_INTERVAL`` iterations, an iteration's part.
    """
    planes = max(level.partition.lengths)
    loss = stage.similarity.summed(planes)
    if isinstance(stage, Deformable):
        step, reach = 2, 2 * planes if level.residency != "replicate" else 0
    else:
        step, reach = 17 + 12 * planes, 0
    return (plan.workers - 1) * (NUMBER * (loss + step) + NUMBER * reach // REACH_INTERVAL)


def reached(plan: Layout, level: Level) -> list[Span]:
    """Planes of the moving level that each block is taken to read: the headers' image of the slab, and ASSUMED_DRIFT around it.

    Where the first stage brings the centres together, as after it.
    """
    start = np.eye(4)
    if isinstance(plan.config.stages[0], Moments | Search):
        start = translation(plan.moving.center - plan.fixed.center)
    row = index_map(start, level.fixed, level.moving)[0]
    _, y, x = level.fixed.shape
    return [_image(row, slab, y, x) & level.shards.whole if len(slab) else Span(0, 0) for slab in level.partition.slabs]


def window_planes(plan: Layout, level: Level, planes: int) -> int:
    """Planes of the moving level that so many planes of the fixed one are taken to read."""
    row = index_map(np.eye(4), level.fixed, level.moving)[0]
    _, y, x = level.fixed.shape
    across = abs(row[0]) * min(planes, level.fixed.shape[0]) + abs(row[1]) * (y - 1) + abs(row[2]) * (x - 1)
    return min(level.moving.shape[0], math.ceil(float(across)) + 2 + 2 * ASSUMED_DRIFT)


def _image(row: np.ndarray, slab: Span, y: int, x: int) -> Span:
    """Planes between which the corners of a slab fall."""
    ends = [(row[0] * slab.start, row[0] * (slab.stop - 1)), (0.0, row[1] * (y - 1)), (0.0, row[2] * (x - 1))]
    low, high = (float(row[3]) + sum(pick(e) for e in ends) for pick in (min, max))
    return Span(math.floor(low) - ASSUMED_DRIFT, math.floor(high) + 2 + ASSUMED_DRIFT)

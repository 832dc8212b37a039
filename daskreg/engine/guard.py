"""Whether a stage made things worse: the loss of the stage before it, or its own, at its finest level, before and after; and
whether coarser levels of a linear stage did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Linear, Optimised, Rigid, Search
from daskreg.engine.filling import NO_FILLING, Filling
from daskreg.engine.images import Image
from daskreg.engine.linear import KEPT_OVERLAP, LinearLoss
from daskreg.engine.reach import Reach, SamplingMap, displaced_range, spans
from daskreg.engine.sweep.linear import SweptLinearLoss
from daskreg.planning import Level

Matrix = NDArray[np.float64]
MakeLoss = Callable[[], LinearLoss]
WORSE = 0.1  # part of the loss: less is given up where two losses have their optimum at places a little apart
BEFORE, OWN, COARSER = "loss of the stage before", "own loss", "coarser levels"  # in reports


def judge_of(stages: Sequence[Any], index: int) -> tuple[Linear | None, str]:
    """The linear stage whose loss tells whether the stage with an index made things worse, None without one, and its name in
    reports: the stage right before; after a search, which has another loss, the stage itself.
    """
    before, stage = stages[index - 1] if index else None, stages[index]
    if isinstance(before, Linear) and isinstance(stage, Optimised):
        return before, BEFORE
    return (stage if isinstance(before, Search) and isinstance(stage, Linear) else None), OWN


class DisplacedLoss(LinearLoss):
    """The loss of a linear stage with a displacement before its map."""

    def __init__(self, stage: Linear, level: Level, images: tuple[Image, Image], comm: Communicator, u: Any) -> None:
        super().__init__(stage, level, images, comm)
        self.u = u

    def sample(self, world: Matrix) -> SamplingMap:
        """Fill moved and weights at W (x + u(x))."""
        mapping = SamplingMap.of(self.block.first, world, self.level.fixed, self.level.moving)
        ranges = self.comm.gather(np.array(displaced_range(self.block, mapping, self.u)))
        self.sampler.prepare(Reach.of_slabs(self.block.partition, spans(ranges)))
        self.sampler.sample(self.block.box(), mapping, self.u, self.moved, self.weights.moving, self.gradient, self.domain)
        self.weights.combine()
        return mapping


@dataclass(frozen=True)
class LossChange:
    """Of a loss at two maps: its values, and N, the sum of the weights of the voxels that are compared."""

    before: float
    after: float
    seen_before: float
    seen_after: float

    @property
    def worse(self) -> bool:
        """Whether the loss rose by more than WORSE."""
        return self.after > self.before + WORSE * abs(self.before)

    @property
    def after_on_all(self) -> float:
        """The value after, of a loss that is 0 where nothing is alike, with that for voxels that are no longer compared: to leave
        out what does not match is no gain.
        """
        return self.after * (min(1.0, self.seen_after / self.seen_before) if self.seen_before else 1.0)

    @property
    def led_astray(self) -> bool:
        """Whether it rose at all, and was compared on not much less before: over few voxels a mean is low by chance."""
        return self.after_on_all > self.before and self.seen_before >= KEPT_OVERLAP * self.seen_after

    @property
    def losses(self) -> dict[str, float]:
        """For reports."""
        return {"before": self.before, "after": self.after}


def compare(
    stage: Linear,
    level: Level,
    images: tuple[Image, Image],
    comm: Communicator,
    worlds: tuple[Matrix, Matrix],
    u: Any = None,
    filling: Filling = NO_FILLING,
) -> LossChange:
    """The loss of a linear stage at two maps.

    Both are matched at the first one: edges that a stage made steeper, or a brighter image, are no gain.

    u: the displacement before the second map, ``Planes`` with the halo of ``level``, where there is one;  filling: what both
    leave out, as linear stages do
    """
    judge = Rigid(similarity=stage.similarity)
    if level.state != "device" or level.images != "device":
        swept = partial(SweptLinearLoss, judge, level, images, comm, filling)
        return _compared(swept, partial(swept, u=u), worlds)
    u = None if u is None else u.array  # of a level whose fields are on the device
    deep = replace(level, halo=max(level.halo, judge.similarity.reach)) if u is None else level
    earlier = partial(LinearLoss, judge, deep, images, comm, filling)
    later = earlier if u is None else partial(DisplacedLoss, judge, level, images, comm, u)
    return _compared(earlier, later, worlds)


def _compared(earlier: MakeLoss, later: MakeLoss, worlds: tuple[Matrix, Matrix]) -> LossChange:
    """Of two losses, made one after the other, each at its map."""
    loss = earlier()
    total = loss.match(worlds[0]) if loss.similarity.matched else None
    before, seen = loss.value(worlds[0])[:2]
    del loss  # its buffers go before the next one's come
    loss = later()
    if total is not None:
        loss.similarity.match(total)
    after, left = loss.value(worlds[1])[:2]
    return LossChange(before, after, seen, left)

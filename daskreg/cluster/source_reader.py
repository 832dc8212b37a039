"""Images that stay in their files: what scales them is measured, and the levels of all stages are made, in few passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskreg.comm import Communicator
from daskreg.config import Optimised, Search
from daskreg.engine.background import Background
from daskreg.engine.counted_reader import CountedReader
from daskreg.engine.global_search import search_levels
from daskreg.engine.initial import moments_level
from daskreg.engine.planes import Allocate, ArrayPlanes
from daskreg.engine.source_images import ScaledSource, SourceImage, Wanted
from daskreg.engine.source_statistics import Statistics
from daskreg.grid import Grid, Index, Partition, Sigmas, Span
from daskreg.planning import Level, Plan
from daskreg.planning.slabs import total_reach
from daskreg.planning.source import level_boxes, source_boxes
from daskreg.storage import Volume

Key = tuple[Index, Sigmas | None]


@dataclass(frozen=True)
class SourceReader:
    """Makes images of a plan that stay in their files.

    allocate: makes room for levels that do not fit into memory, None where all do
    """

    plan: Plan
    comm: Communicator
    allocate: Allocate | None

    def read(
        self, role: int, name: str, volume: Volume, mask: Volume | None, background: Background | None, grid: Grid,
        partition: Partition,
    ) -> SourceImage:  # fmt: skip
        """An image, without a level yet;  role: 0 fixed, 1 moving."""
        own = partition[self.comm.rank]
        counted = CountedReader(volume, volume.shape, volume.piece)
        boxes, made_in = source_boxes(self.plan, role), level_boxes(self.plan, role)
        source = ScaledSource(counted, mask, background, boxes, self.plan.config, made_in, name)
        statistics = Statistics(source, own, self.comm, name, "" if mask is None else f"the mask {mask.name}")
        scaled = statistics.measured(volume.dtype)
        given = {"grid": grid, "partition": partition, "held": own, "rank": self.comm.rank, "left_out": statistics.left_out}
        return SourceImage.of(scaled, self.allocate or ArrayPlanes.zeros, **given)

    def prepare(self, images: tuple[SourceImage, SourceImage]) -> None:
        """Make the levels of all stages, as far as they are known before any has run."""
        for role, image in enumerate(images):
            image.prepare(list(self._wanted(role, images).values()))

    def _wanted(self, role: int, images: tuple[SourceImage, SourceImage]) -> dict[Key, Wanted]:
        found = dict[Key, Wanted]()
        for stage, levels in zip(self.plan.config.stages, self.plan.levels, strict=True):
            for level in levels:
                assert isinstance(stage, Optimised)
                one = self._of_level(role, stage, level, images[role])
                found[one.factors, one.sigmas] = _wider(found.get((one.factors, one.sigmas)), one)
            for factors in () if levels else _initial(stage, images)[role]:
                found.setdefault((factors, None), Wanted(factors, None, images[role].level_owners(factors[0])[self.comm.rank]))
        return found

    def _of_level(self, role: int, stage: Optimised, level: Level, image: SourceImage) -> Wanted:
        factors = (level.fixed_factors, level.moving_factors)[role]
        sigmas = level.moving_sigmas if role else None
        if level.images == "device":
            return Wanted(factors, sigmas, image.level_owners(factors[0])[self.comm.rank])
        if role:
            return Wanted(factors, sigmas, level.shards.whole, kept=True)
        around = total_reach(level.in_voxels(stage))
        return Wanted(factors, sigmas, level.partition[self.comm.rank].grow(around) & level.partition.whole, kept=True)


def _wider(before: Wanted | None, one: Wanted) -> Wanted:
    """A level that two stages read, as the one that reads more of it does."""
    if before is None:
        return one
    kept = before.kept or one.kept
    return one._replace(kept=kept, own=Span(min(one.own.start, before.own.start), max(one.own.stop, before.own.stop)))


def _initial(stage: object, images: tuple[SourceImage, SourceImage]) -> tuple[set[Index], set[Index]]:
    """The levels of a stage that finds an initial map."""
    if isinstance(stage, Search):
        return search_levels(stage, images, np.eye(4))
    level = moments_level(images)
    return {level.fixed_factors}, {level.moving_factors}

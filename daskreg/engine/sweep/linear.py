"""The loss of a linear stage a few planes at a time, with both images out of the device's memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Linear
from daskreg.engine.edge_images import grown
from daskreg.engine.filling import NO_FILLING, Filling, holds
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.linear import UNIT, LinearLoss, Matrix, domain_of, seen_weight
from daskreg.engine.planes import Planes, on
from daskreg.engine.reach import Reach, SamplingMap, affine_reach, displaced_reach
from daskreg.engine.residency import make_sampler
from daskreg.engine.sampler import NOTHING, Resident
from daskreg.engine.sums import add_up_slabs
from daskreg.grid import Partition, Span
from daskreg.kernels.device import host, module_of
from daskreg.kernels.sampling.cpu import EVERYWHERE
from daskreg.planning import Level
from daskreg.similarity.base import Samples, Similarity
from daskreg.transforms.linear import index_gradient_by_plane, world_gradient


@dataclass(frozen=True)
class SampledPlanes:
    """Some own planes with those that windows around them reach, sampled."""

    planes: Span
    held: Span
    samples: Samples
    mapping: SamplingMap


class SweptLinearLoss(LinearLoss):
    """As ``LinearLoss``, with the same bits: each part is what a rank with those planes would compute.

    The voxels that ``hold`` chose are found again at every evaluation, from the map that they were chosen at.

    u: a displacement before the map, W (x + u(x)), wherever it is; then no voxels can be held
    """

    def __init__(
        self,
        stage: Linear,
        level: Level,
        images: tuple[Image, Image],
        comm: Communicator,
        filling: Filling = NO_FILLING,
        u: Planes | None = None,
    ) -> None:
        self.level, self.comm, self.u, self.needs_scratch = level, comm, u, bool(stage.similarity.scratch)
        self.filling, self.last = filling, level.scale == stage.scales[-1]
        (fixed, moving), kept = images, level.images != "device"
        self.similarity: Similarity = stage.similarity.build(fixed.device.kind)
        self.domain = domain_of(self.similarity, level)
        self.around = self.similarity.reach + self.mixed  # planes that are sampled around those of a part
        self.block = Block(level.fixed.shape, level.partition, comm.rank, self.around, fixed.device)
        self.still = fixed.open(level.fixed_factors, self.block.around(self.around), comm, kept=kept)
        sampler = make_sampler("window", moving, level.moving_factors, level.shards, comm, kept=kept, most=level.window)
        assert isinstance(sampler, Resident)
        self.sampler: Resident = sampler
        self.mask = None if self.still.mask is None else self.block.device.no_mask  # whether there is one
        self.held_at: Matrix | None = None

    def hold(self, world: Matrix) -> float:
        """See ``LinearLoss``."""
        self.held_at = None
        self.match(world)
        self.held_at = world
        if self.filling != NO_FILLING:
            self.match(world)
        return self.value(world)[1]

    def match(self, world: Matrix) -> NDArray[np.generic] | None:
        """See ``LinearLoss``."""
        if not self.similarity.matched:
            return None
        parts = [host(self.similarity.moments(part.samples)) for part in self._parts(world)]
        total = add_up_slabs(parts, self.comm, self.block.partition)
        self.similarity.match(total)
        return total

    def value(self, world: Matrix) -> tuple[float, float, NDArray[np.generic], SamplingMap]:
        """See ``LinearLoss``."""
        parts = [host(self.similarity.partial(part.samples)) for part in self._parts(world)]
        total = add_up_slabs(parts, self.comm, self.block.partition)
        loss, n = self.similarity.value(total)
        return loss, n, total, self._mapping(world, self.block.held)

    def perfect(self, world: Matrix) -> bool:
        """See ``LinearLoss``."""
        differs = 0.0
        for part in self._parts(world):
            own, s = part.planes.within(part.held), part.samples
            differs = max(differs, 1.0 - float(module_of(s.moved).array_equal(s.moved[own], s.fixed[own])))
        return bool(self.comm.max(np.array([differs]))[0] == 0)

    def shared(self, world: Matrix) -> float:
        """See ``LinearLoss``."""
        weights = (seen_weight(p.samples.moved, p.samples.weight, p.planes.within(p.held)) for p in self._parts(world))
        return float(self.comm.sum_counts(np.array([sum(weights)], np.int64))[0]) / UNIT

    def __call__(self, world: Matrix) -> tuple[float, NDArray[np.float64]]:
        """See ``LinearLoss``; two passes, as the gradient needs the sums over all parts."""
        loss, n, total, _ = self.value(world)
        planes = []
        for part in self._parts(world):
            self.similarity.partial(part.samples)  # intermediates that the gradient reads
            self.similarity.finish(part.samples, total)
            rows = self.sampler.sums(part.samples.box, part.mapping, part.samples.moved, None)
            planes.append(index_gradient_by_plane(host(rows), part.planes.start))
        sums = self.comm.sum_planes(np.concatenate(planes, axis=1), self.block.partition.lengths).reshape(3, 4) / max(n, 1e-30)
        return loss, world_gradient(np.vstack([sums, np.zeros(4)]), self.level.fixed, self.level.moving)

    # ---------------------------------------------------------------- parts

    def _parts(self, world: Matrix) -> Iterator[SampledPlanes]:
        """All own planes, in order; one part without planes for a rank that has none."""
        others = [] if self.held_at is None else [self.held_at, *self.probes(self.held_at)]
        reach = functools.reduce(Reach.united, map(self._reach, [*others, world]))
        own, whole = self.block.own, self.block.partition.whole
        self.sampler.prepare(reach.beyond(self.around))
        parts = [Span(z, min(z + self.level.slab, own.stop)) for z in range(own.start, own.stop, self.level.slab)] or [own]
        around = [planes.grow(self.around) & whole for planes in parts]
        for planes, held, following in zip(parts, around, [*around[1:], NOTHING], strict=True):
            self.sampler.bring(held, following)
            yield self._part(planes, held, world)

    def _part(self, planes: Span, held: Span, world: Matrix) -> SampledPlanes:
        device, ny, nx = self.block.device, *self.block.shape[1:]
        here = Block(self.block.shape, Partition(self.block.shape[0], (held,)), device=device)
        fixed, weight = on(device, self.still.voxels, held)[0], here.scalar() if self.sampler.masked else None
        mapping, moved = self._mapping(world, held), here.scalar()
        if self.held_at is None:
            u = None if self.u is None else device.xp.ascontiguousarray(on(device, self.u, held))
            self.sampler.sample(here.box(), mapping, u, moved, weight, None, self.domain)
            self.filling.leave_out(fixed, moved)
        else:
            self._sample_held(here, mapping, held, fixed, moved, weight)
        mask = None if self.still.mask is None else on(device, self.still.mask, held)[0]
        if weight is None:
            weight = device.no_mask if mask is None else mask
        elif mask is not None:
            weight *= mask
        scratch = here.vector() if self.needs_scratch else device.xp.empty((3, 0, 0, 0), np.float32)
        box = range(planes.start - held.start, planes.stop - held.start), ny, nx
        return SampledPlanes(planes, held, Samples(box, held.start, fixed, weight, moved, scratch), mapping)

    def _sample_held(self, here: Block, mapping: SamplingMap, held: Span, fixed: Any, moved: Any, weight: Any) -> None:
        """NaN where a voxel was not chosen; weights are those of the map that voxels were chosen at."""
        assert self.held_at is not None
        chosen = here.scalar()
        self.sampler.sample(here.box(), self._mapping(self.held_at, held), None, chosen, weight, None, self.domain)
        self.filling.leave_out(fixed, chosen)
        outside = ~module_of(chosen).isfinite(chosen)
        for probe in self.probes(self.held_at):
            self.sampler.sample(here.box(), self._mapping(probe, held), None, chosen, None, None, EVERYWHERE)
            outside |= holds(chosen, self.filling.moving)
        chosen[...] = 0
        chosen[grown(outside) if self.mixed else outside] = np.nan
        self.sampler.sample(here.box(), mapping, None, moved, None, None, EVERYWHERE)
        moved += chosen

    def _mapping(self, world: Matrix, held: Span) -> SamplingMap:
        return SamplingMap.of(held.start, world, self.level.fixed, self.level.moving)

    def _reach(self, world: Matrix) -> Any:
        partition, mapping = self.block.partition, self._mapping(world, self.block.held)
        if self.u is not None:
            return displaced_reach(self.u, self.block, mapping, self.comm)
        return affine_reach(mapping, partition, self.block.shape).within(self.level.moving.shape[0])


def make_linear_loss(
    stage: Linear, level: Level, images: tuple[Image, Image], comm: Communicator, filling: Filling = NO_FILLING
) -> LinearLoss:
    """Of images where the level has them."""
    kind = LinearLoss if level.images == "device" else SweptLinearLoss
    return kind(stage, level, images, comm, filling)

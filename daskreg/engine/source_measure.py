"""Numbers about a result of images that stay in their files, as ``measure`` gives them, in one pass over the fixed one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.box_sampling import sampled
from daskreg.engine.coarse_pair import coarse_factors
from daskreg.engine.file_order import FileOrderSampler, PlacedMap
from daskreg.engine.measure import MUTUAL_INFORMATION_BINS, correlation, folded_and_extreme, folding_of
from daskreg.engine.plane_sums import PlaneMoments
from daskreg.engine.reach import SamplingMap
from daskreg.engine.report import Outcome
from daskreg.engine.source_images import SourceImage
from daskreg.engine.upsampled import UpsampledField
from daskreg.grid import Index, Region, Span
from daskreg.kernels.jacobian import jacobian
from daskreg.kernels.sampling.cpu import CENTERS
from daskreg.planning import Plan
from daskreg.planning.source import (
    blocks_of,
    is_judged_on_the_way,
    is_kept_whole,
    measured_block,
    scanned_boxes,
    source_boxes,
)
from daskreg.similarity.base import Samples, Similarity
from daskreg.similarity.mutual_information import MI

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Images = tuple[SourceImage, SourceImage]


class _Likeness:
    """Of fixed and moved by one map, box by box."""

    def __init__(self, plan: Plan, own: Span) -> None:
        self.plan = plan
        self.information: Similarity = MI(bins=MUTUAL_INFORMATION_BINS).build("cpu")
        self.moments = PlaneMoments(own, plan.fixed.shape[1] * plan.fixed.shape[2])
        self.counts = np.zeros((MUTUAL_INFORMATION_BINS, MUTUAL_INFORMATION_BINS), np.int64)

    def add(self, region: Region, fixed: Array, moved: Array) -> None:
        """The next rows of some planes."""
        ones = np.empty((0, 0, 0), np.float32)
        samples = Samples(fixed.shape, region.start[0], fixed, ones, moved, moved)
        self.counts += self.information.partial(samples).astype(np.int64)
        self.moments.add(region, fixed, moved)

    def result(self, comm: Communicator) -> dict[str, float]:
        total = comm.sum_planes(self.moments.sums, self.plan.partition.lengths)
        mutual = -self.information.value(comm.sum_counts(self.counts))[0]
        return {"ncc": correlation(total), "mi": mutual, "overlap": float(total[0]) / self.plan.fixed.size}


def likenesses(
    plan: Plan, start: Matrix, outcome: Outcome, images: Images, comm: Communicator
) -> tuple[dict[str, float], dict[str, float]]:
    """Before and after, see ``measure.likeness``; both images' parts of the coarse pair are made on the way, if they can be."""
    fixed, moving = images
    own, u = plan.partition[comm.rank], outcome.displacement
    assert u is None or isinstance(u, UpsampledField), "a displacement that is upsampled where it is read"
    maps = _placed(plan, start, None), _placed(plan, outcome.affine, u)
    factors = coarse_factors(plan, outcome)
    coarse, both = fixed.summing(factors[0]), (_Likeness(plan, own), _Likeness(plan, own))
    for block, moved in _moved(plan, moving, maps, own, outcome.affine, factors[1]):
        regions = list(source_boxes(plan, 0).within(block))
        for region, (voxels, weights) in fixed.source.each_of(fixed.source.read, regions, "the measures"):
            coarse(region, voxels, weights)
            for one, sampled_by in zip(both, moved, strict=True):
                one.add(region, voxels, sampled_by(region))
    return both[0].result(comm), both[1].result(comm)


def _placed(plan: Plan, world: Matrix, u: UpsampledField | None) -> PlacedMap:
    return PlacedMap(SamplingMap.of(0, world, plan.fixed, plan.moving), None if u is None else u.box)


def _moved(
    plan: Plan, moving: SourceImage, maps: Sequence[PlacedMap], own: Span, world: Matrix, factors: Index
) -> Iterator[tuple[Region, list[Callable[[Region], Array]]]]:
    """Blocks of the own planes, and what gives moved by each map in a box of them.

    Where they are one block, and all of the moving image is read for it, its part of the coarse pair is made too.
    """
    part = Region((own.start, 0, 0), (own.stop, *plan.fixed.shape[1:]))
    if is_kept_whole(plan):
        image = moving.source.values(Region((0, 0, 0), plan.moving.shape))
        yield part, [partial(_of_whole, one, image) for one in maps]
        return
    on_the_way = is_judged_on_the_way(plan)
    coarse = moving.summing(factors) if on_the_way else None
    blocks = list(blocks_of(part, measured_block(plan, world), source_boxes(plan, 0).planes))
    sampler = FileOrderSampler(plan.moving.shape, scanned_boxes(plan), plan.encodings[1].piece, CENTERS)
    for number, block in enumerate(blocks):
        purpose = "the measures" + (f", part {number + 1} of {len(blocks)}" if len(blocks) > 1 else "")
        read = partial(_read, moving, purpose, coarse)
        moved = sampler.sample(block, maps, read, moving.partition[moving.rank] if on_the_way else None)
        yield block, [one.part for one in moved]


def _of_whole(place: PlacedMap, image: Array, region: Region) -> Array:
    return sampled(place.mapping, image, CENTERS, region, place.displacement(region))


def _read(
    moving: SourceImage, purpose: str, also: Callable[[Region, Array, Array | None], None] | None, regions: Sequence[Region]
) -> Iterator[tuple[Region, Array]]:
    """Voxels of boxes, which something else is made of too."""
    if also is None:
        yield from moving.source.each_of(moving.source.values, regions, purpose)
        return
    for region, (voxels, weights) in moving.source.each_of(moving.source.read, regions, purpose):
        also(region, voxels, weights)
        yield region, voxels


def folding(u: UpsampledField, own: Span, comm: Communicator) -> dict[str, float]:
    """See ``measure.folding``."""
    counts, low, high = np.zeros(2, np.int64), np.inf, -np.inf
    for region in u.boxes.over(own):
        determinant = _determinant(u, region)
        counts += folded_and_extreme(determinant)
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
    return folding_of(counts, (low, high), math.prod(u.shape), comm)


def _determinant(u: UpsampledField, region: Region) -> Array:
    """In a box; derivatives see the planes and rows around it."""
    around = region.grow((1, 1, 0)) & Region((0, 0, 0), u.shape)
    shape = (region.shape[0], *around.shape[1:])
    determinant = np.empty(shape, np.float32)
    jacobian(shape, region.start[0] - around.start[0], u.box(around), determinant)
    return determinant[:, region.within(around)[1]]

"""Numbers about a result of images that stay in their files, as ``measure`` gives them, in one pass over the fixed one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.box_sampling import BoxSampler, keeping_whole
from daskreg.engine.coarse_pair import coarse_factors
from daskreg.engine.measure import MUTUAL_INFORMATION_BINS, correlation
from daskreg.engine.plane_sums import PlaneMoments
from daskreg.engine.reach import SamplingMap
from daskreg.engine.report import Outcome
from daskreg.engine.source_images import SourceImage
from daskreg.engine.upsampled import UpsampledField
from daskreg.grid import Region, Span
from daskreg.kernels.jacobian import jacobian
from daskreg.kernels.sampling.cpu import CENTERS
from daskreg.planning import Plan
from daskreg.planning.source import crop_bytes
from daskreg.similarity.base import Samples, Similarity
from daskreg.similarity.mutual_information import MI

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
Images = tuple[SourceImage, SourceImage]


class _Likeness:
    """Of fixed and moved by one map. u: gives the displacement in a box, None without one"""

    def __init__(self, plan: Plan, world: Matrix, u: UpsampledField | None, read: Callable[[Region], Array], own: Span) -> None:
        mapping = SamplingMap.of(0, world, plan.fixed, plan.moving)
        self.sample = BoxSampler(mapping, plan.moving.shape, read, CENTERS, crop_bytes(plan.memory))
        self.plan, self.u = plan, u
        self.information: Similarity = MI(bins=MUTUAL_INFORMATION_BINS).build("cpu")
        self.moments = PlaneMoments(own, plan.fixed.shape[1] * plan.fixed.shape[2])
        self.counts = np.zeros((MUTUAL_INFORMATION_BINS, MUTUAL_INFORMATION_BINS), np.int64)

    def add(self, region: Region, fixed: Array) -> None:
        moved = self.sample(region, None if self.u is None else self.u.box(region))
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
    """Before and after, see ``measure.likeness``; the fixed image's part of the coarse pair is made on the way."""
    fixed, moving = images
    own, u = plan.partition[comm.rank], outcome.displacement
    assert u is None or isinstance(u, UpsampledField), "a displacement that is upsampled where it is read"
    read = keeping_whole(lambda region: moving.source.read(region)[0], plan.moving.shape, crop_bytes(plan.memory))
    both = _Likeness(plan, start, None, read, own), _Likeness(plan, outcome.affine, u, read, own)
    coarse = fixed.summing(coarse_factors(plan.fixed, plan.moving, outcome.affine)[0])
    for region, (voxels, weights) in fixed.source.all_of(own, "the measures"):
        coarse(region, voxels, weights)
        for one in both:
            one.add(region, voxels)
    return both[0].result(comm), both[1].result(comm)


def folding(u: UpsampledField, own: Span, comm: Communicator) -> dict[str, float]:
    """See ``measure.folding``."""
    folded, low, high = 0, np.inf, -np.inf
    for region in u.boxes.over(own):
        determinant = _determinant(u, region)
        folded += int((determinant <= 0).sum())
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
    folded = int(comm.sum_counts(np.array([folded]))[0])
    ends = comm.max(np.array([-low, high]))
    return {"folded_percent": 100 * folded / np.prod(u.shape), "smallest": -float(ends[0]), "largest": float(ends[1])}


def _determinant(u: UpsampledField, region: Region) -> Array:
    """In a box; derivatives see the planes and rows around it."""
    around = region.grow((1, 1, 0)) & Region((0, 0, 0), u.shape)
    shape = (region.shape[0], *around.shape[1:])
    determinant = np.empty(shape, np.float32)
    jacobian(shape, region.start[0] - around.start[0], u.box(around), determinant)
    return determinant[:, region.within(around)[1]]

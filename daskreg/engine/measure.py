"""Numbers about a result that need the whole images: how alike they are, and whether space folds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.images import FULL, Image
from daskreg.engine.planes import Planes, on
from daskreg.engine.reach import Reach, SamplingMap, affine_reach, displaced_reach
from daskreg.engine.report import Outcome
from daskreg.engine.residency import make_sampler
from daskreg.engine.sampler import Resident
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import host, module_of
from daskreg.kernels.jacobian import jacobian
from daskreg.kernels.moment_sums import moments_of_rows
from daskreg.planning import Plan
from daskreg.similarity.base import Samples, Similarity
from daskreg.similarity.mutual_information import MI
from daskreg.transforms.jacobian import EXTREME

Array = NDArray[np.float32]
SLAB = 32  # planes sampled together
MUTUAL_INFORMATION_BINS = 32  # of the joint histogram


def likeness(plan: Plan, outcome: Outcome, images: tuple[Image, Image], comm: Communicator) -> dict[str, float]:
    """Correlation and mutual information (nats) of fixed and moved, over the fixed voxels mapped into the moving image."""
    block = outcome.block
    mapping = SamplingMap.of(block.first, outcome.affine, plan.fixed, plan.moving)
    fixed = images[0].open(FULL, block.around(block.halo), comm).voxels
    sampler = make_sampler("window", images[1], FULL, plan.shards, comm)
    assert isinstance(sampler, Resident)
    sampler.prepare(_reach(outcome, mapping, comm))
    information: Similarity = MI(bins=MUTUAL_INFORMATION_BINS).build(block.device.kind)
    sums, counts = np.zeros((6, len(block.own))), np.zeros((MUTUAL_INFORMATION_BINS, MUTUAL_INFORMATION_BINS), np.int64)
    for z in range(0, len(block.own), SLAB):
        own = Span(z, min(z + SLAB, len(block.own)))
        s = _sampled(outcome, sampler, mapping, fixed, Span(block.own.start + own.start, block.own.start + own.stop))
        counts += host(information.partial(s)).astype(np.int64)
        sums[:, own.start : own.stop] = host(moments(s.fixed, s.moved))
    total = comm.sum_planes(sums, block.partition.lengths)
    mutual = -information.value(comm.sum_counts(counts))[0]
    return {"ncc": correlation(total), "mi": mutual, "overlap": float(total[0]) / plan.fixed.size}


def _sampled(outcome: Outcome, sampler: Resident, mapping: SamplingMap, fixed: Planes, planes: Span) -> Samples:
    """Fixed and moved on some planes."""
    device, first, u = outcome.block.device, planes.start, None
    still = on(device, fixed, planes)[0]
    if outcome.displacement is not None:
        u = device.xp.ascontiguousarray(on(device, outcome.displacement, planes))
    moved, ones = device.xp.empty(still.shape, np.float32), device.xp.empty((0, 0, 0), np.float32)
    sampler.bring(planes)
    sampler.sample(still.shape, mapping._replace(first=first), u, moved, None, None)
    return Samples(still.shape, first, still, ones, moved, moved)


def _reach(outcome: Outcome, mapping: SamplingMap, comm: Communicator) -> Reach:
    block = outcome.block
    if outcome.displacement is None:
        return affine_reach(mapping, block.partition, block.shape)
    return displaced_reach(outcome.displacement, block, mapping, comm)


def moments(fixed: Array, moved: Array) -> NDArray[np.float64]:
    """Sums (6, planes) that a correlation is made of: 1, F, M, FF, MM, FM where moved is in its domain."""
    if not on_device(fixed):
        return moments_of_rows(fixed, moved, np.full(len(fixed), math.prod(fixed.shape[1:])))
    xp, inside = module_of(fixed), module_of(moved).isfinite(moved)
    one, f, m = (xp.where(inside, v, 0).reshape(len(fixed), -1).astype(np.float64) for v in (1, fixed, moved))
    sums: NDArray[np.float64] = xp.stack([v.sum(axis=1) for v in (one, f, m, f * f, m * m, f * m)])
    return sums


def correlation(sums: NDArray[np.float64]) -> float:
    """From sums (6,) of 1, F, M, FF, MM, FM."""
    n, f, m, ff, mm, fm = sums
    spread = (ff - f * f / n) * (mm - m * m / n) if n else 0.0
    return float((fm - f * m / n) / np.sqrt(spread)) if spread > 0 else 0.0


def folding(u: Planes, block: Block, comm: Communicator) -> dict[str, float]:
    """Percentages of voxels where det(I + Du) <= 0, and where it is beyond EXTREME or 1 / EXTREME, and the determinant's range;
    u: the block's, with a plane of halo.
    """
    counts, low, high, xp = np.zeros(2, np.int64), np.inf, -np.inf, block.device.xp
    for z in range(block.own.start, block.own.stop, SLAB):
        lead, stop = min(z, 1), min(z + SLAB, block.own.stop)
        part = xp.ascontiguousarray(on(block.device, u, Span(z - lead, min(stop + 1, block.partition.planes))))
        determinant = xp.empty((stop - z, *block.shape[1:]), np.float32)
        jacobian(determinant.shape, lead, part, determinant)
        counts += folded_and_extreme(determinant)
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
    return folding_of(counts, (low, high), math.prod(block.shape), comm)


def folded_and_extreme(determinant: Array) -> NDArray[np.int64]:
    """How many voxels (2,)."""
    extreme = (determinant < np.float32(1 / EXTREME)) | (determinant > np.float32(EXTREME))
    return np.array([int((determinant <= 0).sum()), int(extreme.sum())], np.int64)


def folding_of(counts: NDArray[np.int64], ends: tuple[float, float], size: int, comm: Communicator) -> dict[str, float]:
    """The percentages and the range over all ranks, of an image of ``size`` voxels."""
    folded, extreme = 100 * comm.sum_counts(counts) / size
    low, high = comm.max(np.array([-ends[0], ends[1]]))
    return {
        "folded_percent": float(folded),
        "extreme_percent": float(extreme),
        "smallest": -float(low),
        "largest": float(high),
    }

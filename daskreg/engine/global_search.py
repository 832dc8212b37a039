"""The global search: over all rotations (``pose_search``), or over all shifts for a few candidate rotations, of which the best
are refined on one level. Candidates are shared out among the ranks; what each finds does not depend on who computes it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, SingleRank
from daskreg.config import Rigid, Search, SimilarityStage
from daskreg.engine.edge_images import whole
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss, run_linear
from daskreg.engine.pose_search import PoseSearch, pose_levels
from daskreg.engine.report import LevelReport, Watch
from daskreg.engine.search_lattice import SearchLattice, nothing_found, search_voxel
from daskreg.engine.shared_out import SharedOut
from daskreg.engine.threads import in_threads
from daskreg.grid import Grid, Index, nearest_scale, shrink_factors
from daskreg.kernels.device import host
from daskreg.planning import Level
from daskreg.similarity import LNCC, NGF
from daskreg.transforms.linear import transform_points, translation
from daskreg.transforms.moments import center_of_mass
from daskreg.transforms.search import Candidate

Matrix = NDArray[np.float64]
PEAKS_PER_ROTATION = 3  # of the correlation, where there is one rotation
DISTINCT = 1.0  # voxels of the search: candidates whose corners are nearer, in the mean, count as one
COMPARISON_SIZE = 48  # voxels along the longest axis of the level on which candidates are refined
ITERATIONS, KEPT = 20, 5  # of that refinement


@dataclass(frozen=True)
class RefinedCandidate:
    """A candidate after a refinement.

    world: its map;  loss, overlap: at ``world``, the part of the smaller domain that is covered;  perfect: whether moved equals
    the fixed image
    """

    world: Matrix
    loss: float = 0.0
    overlap: float = 1.0
    perfect: bool = False

    @property
    def merit(self) -> float:
        """The less the better: a loss of unrelated images falls with the root of the number of voxels."""
        return self.loss * math.sqrt(self.overlap)

    @property
    def rank(self) -> tuple[bool, float]:
        """Least first: a perfect match, then by merit."""
        return not self.perfect, self.merit

    def as_row(self) -> NDArray[np.float64]:
        """What a rank tells the others."""
        return np.array([self.loss, self.overlap, float(self.perfect), *self.world.ravel()])

    def with_row(self, row: NDArray[np.float64]) -> RefinedCandidate:
        """The same start, as it was refined by some rank."""
        return replace(
            self, loss=float(row[0]), overlap=float(row[1]), perfect=bool(row[2]), world=np.array(row[3:]).reshape(4, 4)
        )


ROW = 19  # numbers of ``RefinedCandidate.as_row``


def search_levels(stage: Search, images: tuple[Image, Image], world: Matrix) -> tuple[set[Index], set[Index]]:
    """Shrink factors of both images that the search reads."""
    if stage.rotations == "fine":
        return pose_levels(stage, images, world)
    sizes = search_voxel(stage, images), _comparison_voxel(images)
    fixed, moving = ({shrink_factors(i.grid, size) for size in sizes} for i in images)
    return fixed, moving


def _comparison_voxel(images: tuple[Image, Image]) -> float:
    return max(float(i.grid.extent.max()) for i in images) / COMPARISON_SIZE


def level_at(images: tuple[Image, Image], voxel: float, iterations: int) -> Level:
    """Both images at about a voxel size."""
    f, m = (shrink_factors(i.grid, voxel) for i in images)
    return Level.alone(nearest_scale(images[0].grid, voxel), f, m, images[0].grid, images[1].grid, iterations)


def run_search(
    stage: Search, images: tuple[Image, Image], world: Matrix, comm: Communicator, watch: Watch
) -> tuple[Matrix, LevelReport]:
    """Try every shift for every rotation, refine the best on finer and finer levels, keep the one of least loss.

    images: with the levels of ``search_levels`` whole on every rank. Raises NoOverlap when no candidate covers the part that the
    stage asks for.
    """
    if stage.rotations == "fine":
        return PoseSearch(stage, images, world, SharedOut(comm), watch).run()
    start, shared = time.perf_counter(), SharedOut(comm)
    lattice = SearchLattice(stage, images, world)
    tasks = lattice.tasks()
    found = _correlated(lattice, tasks, shared, watch)
    if not found:
        raise nothing_found(stage, images)
    starts = [RefinedCandidate(w) for w in _header_starts(images, world)]
    refined = _refined(stage, images, starts, [RefinedCandidate(lattice.world(tasks[k], c)) for k, c in found], shared, watch)
    best = refined[0]
    scale, shape = nearest_scale(lattice.grids[0], lattice.voxel), lattice.fixed_lattice.shape
    report = LevelReport("search", scale, shape, [best.loss], time.perf_counter() - start)
    report.detail = _detail(found, refined, lattice)
    return best.world, report


def _detail(found: list[tuple[int, Candidate]], refined: list[RefinedCandidate], lattice: SearchLattice) -> dict[str, Any]:
    """What tells how clear the result is: scores over all rotations, and the refined candidates, the best first.

    rank: the merit;  margin: by which part of its own the winner's rank
    exceeds that of the next distinct candidate
    """
    scores = np.array([c.weight for _, c in found])
    marks = (0, 50, 90, 99, 100)
    ranks = [r.rank[1] for r in refined]
    margin = 1 - min(ranks[1], 0) / ranks[0] if len(ranks) > 1 and ranks[0] < 0 else 1.0
    return {
        "candidates": [{"score": c.score, "overlap": c.overlap} for _, c in found[:5]],
        "scores": {"count": len(scores), **{f"p{m}": float(np.percentile(scores, m)) for m in marks}},
        "refined": [{"loss": r.loss, "overlap": r.overlap, "rank": r.rank[1]} for r in refined],
        "overlap": refined[0].overlap,
        "margin": margin,
        "voxel": lattice.voxel,
    }


def _correlated(lattice: SearchLattice, tasks: list[Matrix], shared: SharedOut, watch: Watch) -> list[tuple[int, Candidate]]:
    """The best candidates of every task, with the task's number, by weight."""
    peaks = PEAKS_PER_ROTATION if len(tasks) == 1 else 1
    rows = [_as_rows(found, peaks) for found in lattice.correlate(shared.mine(tasks), peaks, watch)]
    found = [
        (k, Candidate(float(r[0]), float(r[1]), np.array(r[2:])))
        for k, block in enumerate(shared.results(rows, len(tasks), (peaks, 5)))
        for r in block
        if r[0] > 0
    ]
    return sorted(found, key=lambda pair: -pair[1].weight)


def _as_rows(found: list[Candidate], peaks: int) -> NDArray[np.float64]:
    rows = np.zeros((peaks, 5))
    for row, c in zip(rows, found, strict=False):
        row[:] = c.score, c.overlap, *c.shift
    return rows


def _header_starts(images: tuple[Image, Image], world: Matrix) -> list[Matrix]:
    """The maps of the headers and of the centres of mass, as further candidates."""
    level = level_at(images, _comparison_voxel(images), ITERATIONS)
    (f, _), (m, _) = (whole(i, k) for i, k in zip(images, (level.fixed_factors, level.moving_factors), strict=True))
    center, target = center_of_mass(host(f), level.fixed), center_of_mass(host(m), level.moving)
    return [world, translation(target - transform_points(world, center)) @ world]


def _refined(
    stage: Search,
    images: tuple[Image, Image],
    headers: list[RefinedCandidate],
    others: list[RefinedCandidate],
    shared: SharedOut,
    watch: Watch,
) -> list[RefinedCandidate]:
    """Those of the headers and the best others after a refinement, the best first."""
    corners, distance = images[0].grid.corners(), search_voxel(stage, images) * DISTINCT
    level = level_at(images, _comparison_voxel(images), ITERATIONS)
    chosen = [*headers, *_distinct(others, KEPT, corners, distance)]
    own = in_threads(partial(_refine, stage, level, images), shared.mine(chosen), images[0].device, watch)
    rows = shared.results([r.as_row() for r in own], len(chosen), (ROW,))
    found = sorted((c.with_row(r) for c, r in zip(chosen, rows, strict=True)), key=lambda c: c.rank)
    return _distinct(found, len(found), corners, distance)


def _distinct(found: list[RefinedCandidate], most: int, corners: NDArray[np.float64], distance: float) -> list[RefinedCandidate]:
    """The first of those that map the fixed image's corners to nearly the same points."""
    kept: list[RefinedCandidate] = []
    places: list[NDArray[np.float64]] = []
    for one in found:
        place = transform_points(one.world, corners)
        if all(float(np.linalg.norm(place - p, axis=1).mean()) > distance for p in places):
            kept.append(one)
            places.append(place)
        if len(kept) == most:
            break
    return kept


def _refine(stage: Search, level: Level, images: tuple[Image, Image], start: RefinedCandidate) -> RefinedCandidate:
    """By a few steps at one level; local correlation or edges rank, which unlike mutual information favour no small overlap."""
    similarity = LNCC() if stage.contrast == "same" else NGF(eta=0.05)
    linear = (SimilarityStage if stage.scale > 1 else Rigid)(
        similarity=similarity, scales=(level.scale,), iterations=(level.iterations,)
    )
    world, report = run_linear(linear, level, images, start.world, SingleRank(), Watch())
    overlap = overlap_fraction(level, images, world)
    loss = LinearLoss(linear, level, images, SingleRank()).value(world)[0] if overlap else 0.0
    return replace(start, loss=loss, overlap=overlap, world=world, perfect=report.stopped == "at rest")


def overlap_fraction(level: Level, images: tuple[Image, Image], world: Matrix) -> float:
    """Part of the smaller image's domain that the other one covers under a world map, estimated on a lattice of fixed points."""
    masks = [whole(i, k)[1] for i, k in zip(images, (level.fixed_factors, level.moving_factors), strict=True)]
    axes = [np.unique(np.linspace(0, n - 1, 24).round().astype(int)) for n in level.fixed.shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    at = level.moving.to_index(transform_points(world, level.fixed.to_world(index)))
    there = ((at >= -0.5) & (at <= np.asarray(level.moving.shape) - 0.5)).all(axis=1)
    for mask, where in zip(masks, (index, at.round().astype(int)), strict=True):
        there &= True if mask is None else _at(mask, where)
    volumes = [_volume(g, m) for g, m in zip((level.fixed, level.moving), masks, strict=True)]
    scale = float(abs(np.linalg.det(world[:3, :3])))
    part = float(there.mean()) * float(np.prod(level.fixed.extent)) * scale
    return min(1.0, part / min(volumes[0] * scale, volumes[1]))


def _at(mask: Any, index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a mask holds voxels; indices beyond it are moved to its faces."""
    z, y, x = np.clip(index, 0, np.asarray(mask.shape) - 1).T
    return np.asarray(host(mask)[z, y, x] > 0.5)


def _volume(grid: Grid, mask: Any) -> float:
    """Of the domain, in world units."""
    return float(np.prod(grid.extent)) * (1.0 if mask is None else max(float((mask > 0.5).mean()), 1e-6))

"""The search over all rotations: the best shifts for every rotation on a coarse lattice, then a refinement of the best on finer
and finer ones. Candidates are shared out among the ranks; what each comes to does not depend on who computes it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from daskreg.comm import SingleRank
from daskreg.config import Rigid, Search
from daskreg.engine.edge_images import (
    ComparedPart,
    edge_field,
    filling_value,
    near_object,
    part_of,
    tensor_field,
    without_filling,
)
from daskreg.engine.filling import Filling
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss
from daskreg.engine.report import LevelReport, Watch
from daskreg.engine.rotation_lattice import IDENTITY, ROW, RotationLattice
from daskreg.engine.search_lattice import nothing_found
from daskreg.engine.shared_out import SharedOut
from daskreg.engine.threads import require_going_on
from daskreg.grid import Index, Region, nearest_scale, shrink_factors
from daskreg.kernels.device import host
from daskreg.planning import Level
from daskreg.similarity import NGF
from daskreg.transforms.linear import transform_points, translation
from daskreg.transforms.moments import center_of_mass
from daskreg.transforms.pose_refinement import EdgeField, PoseRefinement, Poses, first_distinct
from daskreg.transforms.rotations import between_rotations
from daskreg.transforms.search import padded_shape

Matrix = NDArray[np.float64]
ROTATION_SIZE = 16  # voxels along an edge of a cube as large as the smaller image
LARGEST_TRANSFORM = 300_000  # voxels: coarser where the images' sizes are far apart
TENSOR_LEVEL = 0.6  # of a voxel of the search: voxels of the level whose edges are correlated
# Around the best: T1 on an EPI has a second maximum 12 to 16 mm beside the right place, where a few steps can end
DISTANCES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)  # voxels of the finest lattice
EVERY = 2  # step along each axis between the points of the finest lattice that tell which of these places are the best
TRIED, ROUNDS = 4, 3  # of these places, those that steps are made from; and how often, while another place is better
# Of 1000 random poses, right ones of heads were further ahead of the next in nine of ten, others in all, and the nine that were
# lost far off were not; with fewer levels of refinement rotations in between found most of these
CLEAR = 0.1
LEAST = 0.2  # weight of a clear result: of 1500 poses right ones had at least 0.23, others far off at most 0.18
MARGIN = 2.0  # voxels of the search around what is not filling


@dataclass(frozen=True)
class RefinementLevel:
    """Of the refinement. voxel, lattice, points: of the level that is read, of the lattice and of the fixed image's points that
    are compared, as a part of a voxel of the search;  apart: the same, least distance of two candidates;  candidates: with and
    as many without what may be filling;  smoothed: by tensors, as they are correlated
    """

    voxel: float
    lattice: float
    points: float
    apart: float
    steps: int
    candidates: int
    smoothed: bool = False


# Where images share half of their content the best of the first lattice is more than a voxel of the search off, too far for
# edges. Tensors agree best two voxels beside the right place on the first lattice, 0.5 on half of its voxels and 0.1 on a
# third, where most still lead there from two. They are so smooth that a part of their points does. A few steps tell which of
# many are worth the others
LEVELS = (
    RefinementLevel(TENSOR_LEVEL, 1.0, 1.5, 1.0, 4, 600, smoothed=True),
    RefinementLevel(0.5, 0.5, 1.0, 1.0, 3, 240, smoothed=True),
    RefinementLevel(0.35, 0.35, 0.7, 0.5, 3, 60, smoothed=True),
    RefinementLevel(0.35, 0.35, 0.7, 0.5, 6, 16, smoothed=True),
    RefinementLevel(0.25, 0.25, 0.25, 0.5, 6, 4),
)


def search_voxel(images: tuple[Image, Image], world: Matrix, overlap: float) -> float:
    """Edge of a voxel of the search, in the fixed image's world."""
    scale = abs(np.linalg.det(world[:3, :3])) ** (1 / 3)
    extents = images[0].grid.extent, images[1].grid.extent / scale
    voxel = float(min(np.prod(e) ** (1 / 3) for e in extents)) / ROTATION_SIZE
    while math.prod(padded_shape(*lattice_bounds(extents, voxel), overlap)) > LARGEST_TRANSFORM:
        voxel *= 1.05
    return voxel


def lattice_bounds(
    extents: tuple[NDArray[np.float64], NDArray[np.float64]], voxel: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels of the fixed image, and of a cube that holds the moving one in any rotation."""
    diagonal = math.ceil(float(np.linalg.norm(extents[1])) / voxel)
    return tuple(math.ceil(float(e) / voxel) for e in extents[0]), (diagonal,) * 3


def pose_levels(stage: Search, images: tuple[Image, Image], world: Matrix) -> tuple[set[Index], set[Index]]:
    """Shrink factors of both images that the search reads."""
    sizes = [
        part * search_voxel(images, world, stage.overlap) for part in (TENSOR_LEVEL, 1.0, *(level.voxel for level in LEVELS))
    ]
    fixed, moving = ({shrink_factors(i.grid, size) for size in sizes} for i in images)
    return fixed, moving


@dataclass(frozen=True)
class Found:
    """A refined candidate: its map, correlation of edges, overlap, and whether what may be filling was left out."""

    world: Matrix
    score: float
    overlap: float
    weight: float
    filled: bool


class PoseSearch:
    """The stages of a search over all rotations.

    images: with the levels of ``pose_levels`` whole on every rank;  world: the first map
    """

    def __init__(self, stage: Search, images: tuple[Image, Image], world: Matrix, shared: SharedOut, watch: Watch) -> None:
        self.stage, self.images, self.first, self.shared, self.watch = stage, images, world, shared, watch
        self.voxel = search_voxel(images, world, stage.overlap)
        self.corners = images[0].grid.corners()
        self._parts: dict[tuple[int, float, bool], ComparedPart] = {}
        self._refinements: dict[tuple[bool, bool, float, float], PoseRefinement] = {}

    def run(self) -> tuple[Matrix, LevelReport]:
        """The map of the candidate whose edges agree best. Raises NoOverlap where no candidate covers enough."""
        start = time.perf_counter()
        if self._at_rest():
            found, scores = [Found(self.first, 1.0, 1.0, 1.0, False)], np.ones(1)
        else:
            scores, found = self._tried(IDENTITY)
            if margin(found) < CLEAR or found[0].weight < LEAST:
                others, more = self._tried(between_rotations())
                scores, found = np.concatenate([scores, others]), self._best([*found, *more])
        scale, shape = nearest_scale(self.images[0].grid, self.voxel), self._part(0, 1.0, False).grid.shape
        report = LevelReport("search", scale, shape, [-found[0].score], time.perf_counter() - start)
        report.detail = _detail(scores, found, self.voxel)
        if found[0].filled:
            report.detail |= self.left_out().report()
        return found[0].world, report

    def _tried(self, offset: Matrix) -> tuple[NDArray[np.float64], list[Found]]:
        """Weights of all candidates, and the best after a refinement; offset: see ``RotationLattice``. Raises NoOverlap."""
        candidates = {filled: self._correlated(filled, offset) for filled in self._variants()}
        scores = np.concatenate([poses.weight for poses in candidates.values()])
        if not scores.size:
            raise nothing_found(self.stage, self.images)
        refined = {filled: self._refined(filled, poses) for filled, poses in candidates.items()}
        best = max(refined, key=lambda filled: float(refined[filled].weight.max()))
        return scores, self._ranked(refined | {best: self._explored(best, refined[best])})

    def _at_rest(self) -> bool:
        """Whether the first map makes the images equal: no other is better."""
        size = LEVELS[-1].voxel * self.voxel
        f, m = (shrink_factors(i.grid, size) for i in self.images)
        level = Level.alone(1, f, m, self.images[0].grid, self.images[1].grid, 1)
        return LinearLoss(Rigid(similarity=NGF()), level, self.images, SingleRank()).perfect(self.first)

    def _variants(self) -> tuple[bool, ...]:
        """Whether to leave out what may be filling: both, where there may be some."""
        return (False, True) if any(self._filling(which, TENSOR_LEVEL) is not None for which in (0, 1)) else (False,)

    def _filling(self, which: int, size: float) -> float | None:
        return filling_value(part_of(self.images[which], size * self.voxel).voxels)

    def left_out(self) -> Filling:
        """What may be filling, on the finest level."""
        size = LEVELS[-1].voxel
        fixed, moving = (self._filling(which, size) for which in (0, 1))
        boxes = None if fixed is None else self._around(0, size), None if moving is None else self._around(1, size)
        return Filling(fixed, moving, boxes)

    def _around(self, which: int, size: float) -> Region | None:
        """The voxels of an image that hold all of a level but filling; None where there is nothing else."""
        image, found = self.images[which], find_objects(host(self._part(which, size, True).inside).astype(np.uint8))
        if not found:
            return None
        sides = list(zip(found[0], shrink_factors(image.grid, size * self.voxel), strict=True))
        box = Region.of((s.start * k for s, k in sides), (s.stop * k for s, k in sides))
        return box & Region((0, 0, 0), image.grid.shape)

    def _part(self, which: int, size: float, filled: bool) -> ComparedPart:
        """Made once, so that its tensors are."""
        key = which, size, filled
        if key not in self._parts:
            part = part_of(self.images[which], size * self.voxel)
            self._parts[key] = without_filling(part) if filled else near_object(part, MARGIN * self.voxel)
        return self._parts[key]

    def _correlated(self, filled: bool, offset: Matrix) -> Poses:
        """The candidates of all rotations, by the ranks together."""
        parts = self._part(0, TENSOR_LEVEL, filled), self._part(1, TENSOR_LEVEL, filled)
        lattice = RotationLattice(self.stage, parts, self.first[:3, :3], self.voxel, offset)
        own = lattice.correlate(self.shared.mine(lattice.turns), self.images[0].device, self.watch)
        rows = np.concatenate(self.shared.results(own, len(lattice.turns), (lattice.candidates, ROW)))
        rows = rows[rows[:, 0] > 0]
        return Poses(rows[:, 2:].reshape(-1, 4, 4), rows[:, 0], rows[:, 1])

    def _refined(self, filled: bool, found: Poses) -> Poses:
        """The best candidates after a refinement on finer and finer lattices, fewer on each; those of headers reach the last."""
        headers = np.array([self.first, self._centered(filled)])
        for level in LEVELS:
            require_going_on(self.watch)
            chosen = found.distinct(self.corners, self.voxel * level.apart, level.candidates)
            found = self._at_level(filled, level, np.concatenate([headers, found.world[chosen]]))
            headers = found.world[: len(headers)]
        return found

    def _explored(self, filled: bool, found: Poses) -> Poses:
        """With what is found around the best, and around what is better there."""
        refinement, apart = self._refinement(filled, LEVELS[-1]), self.voxel * LEVELS[-1].apart / 2
        sparse = refinement.at_every(EVERY)
        for _ in range(ROUNDS):
            require_going_on(self.watch)
            best = found.world[found.weight.argmax()]
            near = self._together(sparse, sparse.neighbours(best, DISTANCES), 0)
            chosen = near.distinct(self.corners, apart, TRIED)
            found = found.joined(self._together(refinement, near.world[chosen], LEVELS[-1].steps))
            both = np.array([best, found.world[found.weight.argmax()]])
            if len(first_distinct(both, self.corners, apart, 2)) < 2:
                break
        return found

    def _at_level(self, filled: bool, level: RefinementLevel, worlds: Matrix) -> Poses:
        """The maps refined on one level."""
        return self._together(self._refinement(filled, level), worlds, level.steps)

    def _refinement(self, filled: bool, level: RefinementLevel) -> PoseRefinement:
        """Made once for all levels that compare the same."""
        key = filled, level.smoothed, level.lattice, level.points
        if key not in self._refinements:
            fields = (self._field(which, filled, level) for which in (0, 1))
            self._refinements[key] = PoseRefinement(*fields, scaled=self.stage.scale > 1)
        return self._refinements[key]

    def _field(self, which: int, filled: bool, level: RefinementLevel) -> EdgeField:
        part, lattice = self._part(which, level.voxel, filled), level.lattice * self.voxel
        if level.smoothed:
            return tensor_field(part, lattice, level.points * self.voxel if which == 0 else None)
        return edge_field(part, lattice)

    def _together(self, refinement: PoseRefinement, worlds: Matrix, steps: int) -> Poses:
        """Maps after some steps, by the ranks together."""
        own = refinement.refined(np.array(self.shared.mine([*worlds])).reshape(-1, 4, 4), steps)
        return Poses.of_rows(np.array(self.shared.results([*own.rows()], len(worlds), (ROW,))))

    def _ranked(self, refined: dict[bool, Poses]) -> list[Found]:
        """Distinct candidates of all, the best first."""
        return self._best([
            Found(w, float(s), float(o), float(g), filled)
            for filled, p in refined.items()
            for w, s, o, g in zip(p.world, p.score, p.overlap, p.weight, strict=True)
        ])  # fmt: skip

    def _best(self, found: list[Found]) -> list[Found]:
        """Those that are distinct, the best first; one that covers too little comes after all that cover enough."""
        found = sorted(found, key=lambda one: (one.overlap < self.stage.overlap / 2, -one.weight))
        kept = first_distinct(np.array([one.world for one in found]), self.corners, self.voxel, len(found))
        return [found[k] for k in kept]

    def _centered(self, filled: bool) -> Matrix:
        """The first map, moved such that the centres of mass meet."""
        f, m = (self._part(which, 1.0, filled) for which in (0, 1))
        center, target = (center_of_mass(host(p.voxels * p.inside), p.grid) for p in (f, m))
        return np.asarray(translation(target - transform_points(self.first, center)) @ self.first)


def margin(found: list[Found]) -> float:
    """By which part of its own the weight of the best exceeds that of the next distinct candidate."""
    return 1 - max(found[1].weight, 0) / found[0].weight if len(found) > 1 and found[0].weight > 0 else 1.0


def _detail(scores: NDArray[np.float64], found: list[Found], voxel: float) -> dict[str, Any]:
    """What tells how clear the result is: weights over all rotations, and the refined candidates, the best first.

    rank: minus the weight, the correlation times the root of the overlap;  margin: see ``margin``
    """
    marks = (0, 50, 90, 99, 100)
    return {
        "scores": {"count": len(scores), **{f"p{m}": float(np.percentile(scores, m)) for m in marks}},
        "refined": [{"loss": -f.score, "overlap": f.overlap, "rank": -f.weight, "filled": f.filled} for f in found],
        "overlap": found[0].overlap,
        "margin": margin(found),
        "voxel": voxel,
    }

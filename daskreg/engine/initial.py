"""Stages that find a start: moments, and the global search. Rank 0 runs them for all, on coarse levels that it can hold whole."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, SingleRank
from daskreg.config import Moments, Rigid, Search
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss, run_linear
from daskreg.engine.reach import SamplingMap
from daskreg.engine.report import LevelReport, Watch
from daskreg.errors import NoOverlap
from daskreg.grid import Grid, Index, Span, shrink_factors
from daskreg.kernels.device import CPU, Device
from daskreg.kernels.sampling.cpu import sample
from daskreg.planning import Level
from daskreg.similarity import LNCC, MI
from daskreg.transforms.linear import linear_about, transform_points, translation
from daskreg.transforms.moments import axis_rotations, center_of_mass, principal_axes
from daskreg.transforms.rotations import candidate_rotations
from daskreg.transforms.search import Candidate, Correlator, band_pass

Matrix = NDArray[np.float64]
COARSE = 48  # voxels along the longest axis of the level on which starts are compared
BEST, PEAKS = 5, 3  # candidates of the search that are refined and compared; peaks looked for where there is one rotation


def coarse_level(images: tuple[Image, Image], size: int) -> Level:
    """Both images at voxels that put about ``size`` of them along the longest edge."""
    voxel = max(float(i.grid.extent.max()) for i in images) / size
    f, m = (shrink_factors(i.grid, voxel) for i in images)
    scale = max(1, round(voxel / min(images[0].grid.spacing)))
    return Level.alone(scale, f, m, images[0].grid, images[1].grid, 20)


def run_initial(
    stage: Moments | Search, images: tuple[Image, Image], world: Matrix, comm: Communicator, watch: Watch
) -> tuple[Matrix, LevelReport]:
    """The stage on rank 0, its result on every rank (its report on rank 0 only)."""
    size = stage.size if isinstance(stage, Search) else COARSE
    seen = images[0].preview(_levels(images, 0, size), comm), images[1].preview(_levels(images, 1, size), comm)
    report = LevelReport(stage.name, 1, (1, 1, 1))
    if comm.rank == 0:
        device = images[0].device
        found = run_search(stage, seen, world, watch, device) if isinstance(stage, Search) else run_moments(stage, seen, world)
        world, report = found
    with comm.timeouts.without_deadline():
        return comm.broadcast(np.ascontiguousarray(world)), report


def _levels(images: tuple[Image, Image], k: int, size: int) -> list[Index]:
    """Shrink factors of image k that the stage looks at."""
    level = coarse_level(images, COARSE)
    return [(level.fixed_factors, level.moving_factors)[k], shrink_factors(images[k].grid, _voxel(images, size))]


def _voxel(images: tuple[Image, Image], size: int) -> float:
    return max(float(i.grid.extent.max()) for i in images) / size


def whole(image: Image, factors: Index) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """All voxels of a level, and the mask's."""
    return image.deliver(factors, [Span(0, image.grid.coarsen(factors).shape[0])], SingleRank())


def run_moments(stage: Moments, images: tuple[Image, Image], world: Matrix) -> tuple[Matrix, LevelReport]:
    """Centres of mass together, after ``world``; with ``orientation`` also the axes, by the sign choice of least loss."""
    start = time.perf_counter()
    level = coarse_level(images, COARSE)
    (f, _), (m, _) = whole(images[0], level.fixed_factors), whole(images[1], level.moving_factors)
    center, target = center_of_mass(f, level.fixed), center_of_mass(m, level.moving)
    there = transform_points(world, center)
    moved = translation(target - there) @ world
    candidates = [moved]
    if stage.orientation:
        turns = axis_rotations(principal_axes(f, level.fixed), principal_axes(m, level.moving))
        candidates += [translation(target - center) @ linear_about(center, r) for r in turns]
    loss = LinearLoss(Rigid(similarity=MI()), level, images, SingleRank())
    values = [loss.value(c)[0] for c in candidates]
    best = int(np.argmin(values))
    report = LevelReport("moments", level.scale, level.fixed.shape, [values[best]], time.perf_counter() - start)
    return candidates[best], report


def run_search(
    stage: Search, images: tuple[Image, Image], world: Matrix, watch: Watch, device: Device = CPU
) -> tuple[Matrix, LevelReport]:
    """Try every shift for every rotation, refine the best few on a device, keep the one of least loss.

    Raises NoOverlap when no candidate covers the part that the stage asks for.
    """
    start = time.perf_counter()
    views = _Views(images, stage.size, world)
    edges = stage.contrast == "any"
    fixed, inside = views.fixed()
    turns = candidate_rotations(stage.rotations, stage.flips)
    correlator = Correlator(band_pass(fixed, inside, edges), inside, views.room(turns).shape, stage.overlap)
    room = views.room(turns)
    found: list[Candidate] = []
    for turn in turns:
        moving, inside = views.moving(turn, room)
        found += correlator.best(band_pass(moving, inside, edges), inside, turn, PEAKS if len(turns) == 1 else 1)
        found = sorted(found, key=lambda c: -c.score)[:BEST]
    if not found:
        raise NoOverlap(
            f"the global search found no shift at which {stage.overlap:.0%} of the smaller image is covered and alike; "
            "check that both show the same thing, or lower 'overlap'."
        )
    starts = [views.world(c, room) for c in found]
    best, losses = _least([*starts, *_usual(images, world)], (images[0].on(device), images[1].on(device)), watch)
    report = LevelReport("search", 1, fixed.shape, [min(losses)], time.perf_counter() - start)
    report.detail = {"candidates": [{"score": c.score, "overlap": c.overlap} for c in found], "refined": losses}
    return best, report


def _usual(images: tuple[Image, Image], world: Matrix) -> list[Matrix]:
    """Where the headers, and where the centres of mass, put the images: candidates like any other."""
    level = coarse_level(images, COARSE)
    (f, _), (m, _) = whole(images[0], level.fixed_factors), whole(images[1], level.moving_factors)
    there = transform_points(world, center_of_mass(f, level.fixed))
    return [world, translation(center_of_mass(m, level.moving) - there) @ world]


def covered(level: Level, world: Matrix) -> float:
    """Part of the smaller image's extent that the other one covers there, judged on a lattice of fixed points."""
    axes = [np.linspace(0, n - 1, 16) for n in level.fixed.shape]
    points = transform_points(world, level.fixed.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)))
    at = level.moving.to_index(points)
    part = float(((at >= -0.5) & (at <= np.asarray(level.moving.shape) - 0.5)).all(axis=1).mean())
    volumes = [float(np.prod(g.extent)) for g in (level.fixed, level.moving)]
    return min(1.0, part * volumes[0] / min(volumes))


def _least(starts: list[Matrix], images: tuple[Image, Image], watch: Watch) -> tuple[Matrix, list[float]]:
    """The start that a short rigid refinement brings to the least loss, and all those losses.

    Local correlation ranks them: unlike mutual information at this coarseness, it is not fooled by a small or an empty overlap.
    """
    level = coarse_level(images, COARSE)
    stage = Rigid(similarity=LNCC(), scales=(level.scale,), iterations=(level.iterations,))
    refined = [run_linear(stage, level, images, s, SingleRank(), watch) for s in starts]
    losses = [report.losses[-1] * covered(level, world) if report.losses else 0.0 for world, report in refined]
    at_rest = [k for k, (_, report) in enumerate(refined) if report.stopped == "at rest"]  # a perfect match needs no ranking
    return refined[at_rest[0] if at_rest else int(np.argmin(losses))][0], losses


class _Views:
    """Both images on one isotropic lattice along the fixed image's axes, the moving one turned about its centre."""

    def __init__(self, images: tuple[Image, Image], size: int, world: Matrix) -> None:
        self.images, self.linear = images, world[:3, :3]
        self.voxel = _voxel(images, size)
        self.centers = [i.grid.center for i in images]

    def lattice(self, shape: NDArray[np.float64]) -> Grid:
        """Voxels of the search around the fixed image's centre."""
        frame = np.asarray(self.images[0].grid.direction)
        n = np.maximum(1, np.ceil(shape / self.voxel)).astype(int)
        origin = self.centers[0] - frame @ ((n - 1) / 2 * self.voxel)
        return Grid(tuple(n), (self.voxel,) * 3, tuple(origin), self.images[0].grid.direction)

    def fixed(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The fixed image on its lattice."""
        return self._sampled(self.images[0], self.lattice(self.images[0].grid.extent), np.eye(4))

    def room(self, turns: list[NDArray[np.float64]]) -> Grid:
        """A lattice that holds the moving image, turned in any of these ways."""
        grid = self.images[1].grid
        frame = np.asarray(self.images[0].grid.direction)
        reach = [np.abs(np.linalg.inv(self.linear @ r @ frame) @ np.asarray(grid.direction)) @ grid.extent for r in turns]
        return self.lattice(np.max(reach, axis=0))

    def moving(self, turn: NDArray[np.float64], room: Grid) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The moving image seen through a rotation about both centres."""
        return self._sampled(self.images[1], room, self._about(turn))

    def _about(self, turn: NDArray[np.float64]) -> Matrix:
        return translation(self.centers[1] - self.centers[0]) @ linear_about(self.centers[0], self.linear @ turn)

    def _sampled(self, image: Image, lattice: Grid, world: Matrix) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        factors = shrink_factors(image.grid, self.voxel)
        voxels, mask = whole(image, factors)
        mapping = SamplingMap.of(0, world, lattice, image.grid.coarsen(factors))
        points = (*mapping, None, 0, voxels.shape[0])
        seen = np.empty(lattice.shape, np.float32)
        sample(lattice.shape, *points, voxels, seen)
        inside = np.isfinite(seen)
        if mask is not None:
            weight = np.empty(lattice.shape, np.float32)
            sample(lattice.shape, *points, mask, weight)
            inside &= weight > 0.5
        return np.where(inside, seen, 0).astype(np.float32), inside

    def world(self, found: Candidate, room: Grid) -> Matrix:
        """The map from fixed to moving points of a candidate."""
        n = np.asarray(self.lattice(self.images[0].grid.extent).shape)
        shift = (found.shift + (np.asarray(room.shape) - 1) / 2 - (n - 1) / 2) * self.voxel
        return self._about(found.rotation) @ translation(-np.asarray(self.images[0].grid.direction) @ shift)

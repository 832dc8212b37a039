"""Stages that find an initial map: moments, and the global search. Rank 0 runs them for all ranks, on coarse levels that fit into
its memory.
"""

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
COMPARISON_SIZE = 48  # voxels along the longest axis of the level on which candidates are compared
KEPT_CANDIDATES = 5  # of the search, that are refined and compared
PEAKS_PER_ROTATION = 3  # of the correlation, where there is one rotation


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
    size = stage.size if isinstance(stage, Search) else COMPARISON_SIZE
    seen = images[0].preview(_levels(images, 0, size), comm), images[1].preview(_levels(images, 1, size), comm)
    report = LevelReport(stage.name, 1, (1, 1, 1))
    if comm.rank == 0:
        device = images[0].device
        found = run_search(stage, seen, world, watch, device) if isinstance(stage, Search) else run_moments(stage, seen, world)
        world, report = found
    with comm.timeouts.without_deadline():
        return comm.broadcast(np.ascontiguousarray(world)), report


def _levels(images: tuple[Image, Image], k: int, size: int) -> list[Index]:
    """Shrink factors of image k that the stage uses."""
    level = coarse_level(images, COMPARISON_SIZE)
    return [(level.fixed_factors, level.moving_factors)[k], shrink_factors(images[k].grid, _voxel(images, size))]


def _voxel(images: tuple[Image, Image], size: int) -> float:
    return max(float(i.grid.extent.max()) for i in images) / size


def whole(image: Image, factors: Index) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """All voxels of a level, and the mask's."""
    return image.gather_level(factors, [Span(0, image.grid.coarsen(factors).shape[0])], SingleRank())


def run_moments(stage: Moments, images: tuple[Image, Image], world: Matrix) -> tuple[Matrix, LevelReport]:
    """Centres of mass together, after ``world``; with ``orientation`` also the axes, by the sign choice of least loss."""
    start = time.perf_counter()
    level = coarse_level(images, COMPARISON_SIZE)
    (f, _), (m, _) = whole(images[0], level.fixed_factors), whole(images[1], level.moving_factors)
    center, target = center_of_mass(f, level.fixed), center_of_mass(m, level.moving)
    mapped = transform_points(world, center)
    moved = translation(target - mapped) @ world
    candidates = [moved]
    if stage.orientation:
        rotations = axis_rotations(principal_axes(f, level.fixed), principal_axes(m, level.moving))
        candidates += [translation(target - center) @ linear_about(center, r) for r in rotations]
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
    lattices = _SearchLattice(images, stage.size, world)
    edges = stage.contrast == "any"
    fixed, inside = lattices.fixed()
    rotations = candidate_rotations(stage.rotations, stage.flips)
    correlator = Correlator(band_pass(fixed, inside, edges), inside, lattices.moving_lattice(rotations).shape, stage.overlap)
    moving_lattice = lattices.moving_lattice(rotations)
    found: list[Candidate] = []
    for rotation in rotations:
        moving, inside = lattices.moving(rotation, moving_lattice)
        peaks = PEAKS_PER_ROTATION if len(rotations) == 1 else 1
        found += correlator.best(band_pass(moving, inside, edges), inside, rotation, peaks)
        found = sorted(found, key=lambda c: -c.score)[:KEPT_CANDIDATES]
    if not found:
        raise NoOverlap(
            f"the global search found no shift at which {stage.overlap:.0%} of the smaller image is covered and alike; "
            "check that both show the same thing, or lower 'overlap'."
        )
    starts = [lattices.world(c, moving_lattice) for c in found]
    best, losses = _best_refined([*starts, *_header_starts(images, world)], (images[0].to(device), images[1].to(device)), watch)
    report = LevelReport("search", 1, fixed.shape, [min(losses)], time.perf_counter() - start)
    report.detail = {"candidates": [{"score": c.score, "overlap": c.overlap} for c in found], "refined": losses}
    return best, report


def _header_starts(images: tuple[Image, Image], world: Matrix) -> list[Matrix]:
    """The maps of the headers and of the centres of mass, as further candidates."""
    level = coarse_level(images, COMPARISON_SIZE)
    (f, _), (m, _) = whole(images[0], level.fixed_factors), whole(images[1], level.moving_factors)
    mapped = transform_points(world, center_of_mass(f, level.fixed))
    return [world, translation(center_of_mass(m, level.moving) - mapped) @ world]


def overlap_fraction(level: Level, world: Matrix) -> float:
    """Part of the smaller image's extent that the other one covers under a world map, estimated on a lattice of fixed points."""
    axes = [np.linspace(0, n - 1, 16) for n in level.fixed.shape]
    points = transform_points(world, level.fixed.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)))
    at = level.moving.to_index(points)
    part = float(((at >= -0.5) & (at <= np.asarray(level.moving.shape) - 0.5)).all(axis=1).mean())
    volumes = [float(np.prod(g.extent)) for g in (level.fixed, level.moving)]
    return min(1.0, part * volumes[0] / min(volumes))


def _best_refined(starts: list[Matrix], images: tuple[Image, Image], watch: Watch) -> tuple[Matrix, list[float]]:
    """The start that a short rigid refinement brings to the least loss, and all those losses.

    Local correlation ranks them: unlike mutual information at this coarseness, it does not favour a small or empty overlap.
    """
    level = coarse_level(images, COMPARISON_SIZE)
    stage = Rigid(similarity=LNCC(), scales=(level.scale,), iterations=(level.iterations,))
    refined = [run_linear(stage, level, images, s, SingleRank(), watch) for s in starts]
    losses = [report.losses[-1] * overlap_fraction(level, world) if report.losses else 0.0 for world, report in refined]
    at_rest = [k for k, (_, report) in enumerate(refined) if report.stopped == "at rest"]  # a perfect match needs no ranking
    return refined[at_rest[0] if at_rest else int(np.argmin(losses))][0], losses


class _SearchLattice:
    """Both images on one isotropic lattice along the fixed image's axes, the moving one rotated about its centre."""

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

    def moving_lattice(self, rotations: list[NDArray[np.float64]]) -> Grid:
        """A lattice that holds the moving image in every rotation."""
        grid = self.images[1].grid
        frame = np.asarray(self.images[0].grid.direction)
        reach = [np.abs(np.linalg.inv(self.linear @ r @ frame) @ np.asarray(grid.direction)) @ grid.extent for r in rotations]
        return self.lattice(np.max(reach, axis=0))

    def moving(self, rotation: NDArray[np.float64], moving_lattice: Grid) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The moving image under a rotation about both centres."""
        return self._sampled(self.images[1], moving_lattice, self._about(rotation))

    def _about(self, rotation: NDArray[np.float64]) -> Matrix:
        return translation(self.centers[1] - self.centers[0]) @ linear_about(self.centers[0], self.linear @ rotation)

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

    def world(self, found: Candidate, moving_lattice: Grid) -> Matrix:
        """The map from fixed to moving points of a candidate."""
        n = np.asarray(self.lattice(self.images[0].grid.extent).shape)
        shift = (found.shift + (np.asarray(moving_lattice.shape) - 1) / 2 - (n - 1) / 2) * self.voxel
        return self._about(found.rotation) @ translation(-np.asarray(self.images[0].grid.direction) @ shift)

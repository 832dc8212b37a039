"""The lattice of the global search: both images' features on it, the moving one's in every rotation, and their correlation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import SingleRank
from daskreg.config import Search
from daskreg.engine.images import Image
from daskreg.engine.reach import SamplingMap
from daskreg.engine.report import Watch
from daskreg.errors import Stopped
from daskreg.grid import Grid, Index, Span, shrink_factors
from daskreg.kernels.compiler.launch import set_thread_count, thread_count
from daskreg.kernels.device import Device, module_of
from daskreg.kernels.sampling.cpu import EXTENT, sample
from daskreg.transforms.linear import linear_about, translation
from daskreg.transforms.orientation import orientation_tensors, rotated
from daskreg.transforms.rotations import candidate_rotations
from daskreg.transforms.search import Candidate, Correlator, band_pass, padded_shape

Matrix = NDArray[np.float64]
ROTATION_SIZE = 16  # voxels along an edge of a cube as large as the smaller image, where many rotations are tried
LARGEST_TRANSFORM = 300_000  # voxels: coarser where the images' sizes are far apart
EDGE_RESOLUTION = 0.6  # of a voxel of the search: voxels of the level whose edges are compared
FILL_SHARE = 0.02  # part of an image at one value from which on it may be filling
LARGEST_FILL = 0.95  # more is background with hardly anything in it
MAXIMUM_THREADS = 4  # that correlate at once: each holds about 50 MB


@dataclass(frozen=True)
class Task:
    """One correlation over all shifts: of the images with or without what may be filling, at a scale and a rotation."""

    filled: bool
    linear: Matrix


def search_voxel(stage: Search, images: tuple[Image, Image], world: Matrix) -> float:
    """Edge of a voxel of the search, in the fixed image's world."""
    grids = [i.grid for i in images]
    if stage.rotations != "fine":
        return max(float(g.extent.max()) for g in grids) / stage.size
    scale = abs(np.linalg.det(world[:3, :3])) ** (1 / 3)
    extents = grids[0].extent, grids[1].extent / scale
    voxel = float(min(np.prod(e) ** (1 / 3) for e in extents)) / ROTATION_SIZE
    while math.prod(padded_shape(*_bounds(extents, voxel), stage.overlap)) > LARGEST_TRANSFORM:
        voxel *= 1.05
    return voxel


def _bounds(extents: tuple[NDArray[np.float64], NDArray[np.float64]], voxel: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels of the fixed image, and of a cube that holds the moving one in any rotation."""
    diagonal = math.ceil(float(np.linalg.norm(extents[1])) / voxel)
    return tuple(math.ceil(float(e) / voxel) for e in extents[0]), (diagonal,) * 3


def feature_voxel(stage: Search, voxel: float) -> float:
    """Voxels of the level that the search samples."""
    return voxel * EDGE_RESOLUTION if stage.rotations == "fine" else voxel


def whole(image: Image, factors: Index) -> tuple[Any, Any]:
    """All voxels of a level, and the mask's."""
    return image.gather_level(factors, [Span(0, image.grid.coarsen(factors).shape[0])], SingleRank())


@dataclass
class _Side:
    """What is compared of an image: channels (C, Z, Y, X) on its level, and where they count."""

    grid: Grid
    channels: Any
    inside: Any


class SearchLattice:
    """Both images on one isotropic lattice along the fixed image's axes, the moving one rotated about its centre."""

    def __init__(self, stage: Search, images: tuple[Image, Image], world: Matrix) -> None:
        self.stage, self.images, self.linear = stage, images, world[:3, :3]
        self.voxel = search_voxel(stage, images, world)
        self.grids = [i.grid for i in images]
        self.frame = np.asarray(self.grids[0].direction)
        self.levels = [self._level(i) for i in images]
        self._sides: dict[tuple[int, bool], _Side] = {}
        self._correlators: dict[bool, Correlator] = {}

    def tasks(self) -> list[Task]:
        """All correlations; what may be filling is compared with and without."""
        linears = [s * r for s in _scales(self.stage.scale) for r in candidate_rotations(self.stage.rotations, self.stage.flips)]
        both = (False, True) if self.stage.rotations == "fine" and self._may_be_filled() else (False,)
        return [Task(filled, linear) for filled in both for linear in linears]

    def _level(self, image: Image) -> tuple[Grid, Any, Any]:
        """A level's grid, its voxels and where its mask is."""
        factors = shrink_factors(image.grid, feature_voxel(self.stage, self.voxel))
        voxels, mask = whole(image, factors)
        return image.grid.coarsen(factors), voxels, (voxels == voxels) if mask is None else mask > 0.5

    def _may_be_filled(self) -> bool:
        return any(bool(filling(v).any()) for _, v, _ in self.levels)

    def _side(self, k: int, filled: bool) -> _Side:
        if (k, filled) not in self._sides:
            grid, voxels, inside = self.levels[k]
            if filled:
                inside = inside & ~filling(voxels)
            fine = self.stage.rotations == "fine"
            channels = orientation_tensors(voxels, inside, grid, self.voxel) if fine else voxels[None]
            self._sides[k, filled] = _Side(grid, channels, inside)
        return self._sides[k, filled]

    def _prepare(self, filled: bool) -> None:
        """What all tasks read, before threads do."""
        if filled not in self._correlators:
            lattice = self._lattice(self.grids[0].extent)
            features = self._features(*self._sampled(self._side(0, filled), lattice, np.eye(4)), self.frame)
            threads = thread_count() if self.stage.rotations != "fine" else 1
            self._correlators[filled] = Correlator(*features, self.moving_lattice.shape, self.stage.overlap, threads)
            self._side(1, filled)

    def correlate(self, tasks: Sequence[Task], peaks: int, watch: Watch) -> list[list[Candidate]]:
        """The best shifts of every task. Raises Stopped."""
        for task in tasks:
            self._prepare(task.filled)
        return in_threads(lambda task: self._best(task, peaks), tasks, self.images[0].device, watch)

    def _best(self, task: Task, peaks: int) -> list[Candidate]:
        return self._correlators[task.filled].best(*self._moving(task), peaks)

    def _lattice(self, size: NDArray[np.float64]) -> Grid:
        """Voxels of the search around the fixed image's centre."""
        n = np.maximum(1, np.ceil(size / self.voxel - 1e-6)).astype(int)
        origin = self.grids[0].center - self.frame @ ((n - 1) / 2 * self.voxel)
        return Grid(tuple(n), (self.voxel,) * 3, tuple(origin), self.grids[0].direction)

    @cached_property
    def moving_lattice(self) -> Grid:
        """A lattice that holds the moving image in every rotation."""
        grid = self.grids[1]
        linears = [t.linear for t in self.tasks()]
        reach = [np.abs(np.linalg.inv(self.linear @ r @ self.frame) @ np.asarray(grid.direction)) @ grid.extent for r in linears]
        return self._lattice(np.max(reach, axis=0))

    def _moving(self, task: Task) -> tuple[Any, Any]:
        """The moving image's features under a rotation about both centres."""
        sampled = self._sampled(self._side(1, task.filled), self.moving_lattice, self._about(task.linear))
        return self._features(*sampled, self.linear @ task.linear @ self.frame)

    def _about(self, linear: Matrix) -> Matrix:
        return translation(self.grids[1].center - self.grids[0].center) @ linear_about(self.grids[0].center, self.linear @ linear)

    def _sampled(self, side: _Side, lattice: Grid, world: Matrix) -> tuple[Any, Any]:
        """Channels on the lattice, and where they count."""
        xp = self.images[0].device.xp
        points = (*SamplingMap.of(0, world, lattice, side.grid), None, 0, side.grid.shape[0], EXTENT)
        seen = xp.empty((len(side.channels) + 1, *lattice.shape), np.float32)
        for channel, target in zip((*side.channels, side.inside.astype(np.float32)), seen, strict=True):
            sample(lattice.shape, *points, channel, target)
        inside = xp.nan_to_num(seen[-1]) > 0.5
        return xp.where(inside, xp.nan_to_num(seen[:-1]), 0).astype(np.float32), inside

    def _features(self, channels: Any, inside: Any, linear: Matrix) -> tuple[Any, Any]:
        if self.stage.rotations == "fine":
            return rotated(channels, linear), inside
        return band_pass(channels[0], inside, self.stage.contrast == "any"), inside

    def world(self, task: Task, found: Candidate) -> Matrix:
        """The map from fixed to moving points of a candidate."""
        n = np.asarray(self._lattice(self.grids[0].extent).shape)
        shift = (found.shift + (np.asarray(self.moving_lattice.shape) - 1) / 2 - (n - 1) / 2) * self.voxel
        return self._about(task.linear) @ translation(-self.frame @ shift)


def _scales(largest: float) -> list[float]:
    """Sizes to try so that none up to ``largest`` times larger or smaller is further than about 15 % from one; 1 first."""
    steps = math.ceil(math.log(largest) / math.log(1.45))
    step = largest ** (0.85 / max(steps, 1))
    return [1.0, *itertools.chain.from_iterable((step**k, step**-k) for k in range(1, steps + 1))]


def filling(voxels: Any) -> Any:
    """Where an image has its most frequent value, and next to it, if that is a fair part of it; else nowhere."""
    values, counts = module_of(voxels).unique(voxels, return_counts=True)
    same = voxels == values[counts.argmax()]
    return _grown(same) if FILL_SHARE <= float(counts.max()) / voxels.size < LARGEST_FILL else same & False


def without_filling(image: Image) -> Image:
    """An image of whole levels, each with a mask that leaves out what may be filling."""
    levels = {}
    for factors, (voxels, mask) in image._levels.items():
        kept = (~filling(voxels)).astype(np.float32)
        levels[factors] = voxels, kept if mask is None else kept * mask
    return replace(image, _levels=levels)


def _grown(region: Any) -> Any:
    """A region and the voxels next to it, whose values are mixed with its own; written out for NumPy and CuPy alike."""
    grown = region.copy()
    for axis in range(region.ndim):
        ends = [slice(None)] * region.ndim, [slice(None)] * region.ndim
        ends[0][axis], ends[1][axis] = slice(1, None), slice(None, -1)
        before = grown.copy()
        grown[tuple(ends[0])] |= before[tuple(ends[1])]
        grown[tuple(ends[1])] |= before[tuple(ends[0])]
    return grown


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], device: Device, watch: Watch) -> list[Any]:
    """``function`` of every item, by several threads on a CPU, each with a single one for its kernels: they are small.

    Raises Stopped between two items where the run is to stop.
    """

    def checked(item: Any) -> Any:
        if watch.stopping():
            raise Stopped("a search is not saved half-way: where the run is continued, it begins again.")
        return function(item)

    threads = 1 if device.kind != "cpu" or len(items) == 1 else min(thread_count(), MAXIMUM_THREADS)
    if threads == 1:
        return [checked(item) for item in items]
    with ThreadPoolExecutor(threads, initializer=set_thread_count, initargs=(1,)) as pool:
        return list(pool.map(checked, items))

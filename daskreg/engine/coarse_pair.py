"""Both images and the displacement on one coarse level, whole on every rank: what a result is judged on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from daskreg.comm import Communicator
from daskreg.engine.edge_images import grown
from daskreg.engine.filling import Filling, holds
from daskreg.engine.halo import Block, gather_planes
from daskreg.engine.images import Image
from daskreg.engine.planes import Planes, on
from daskreg.engine.report import Outcome
from daskreg.engine.source_images import SourceImage
from daskreg.engine.upsampled import UpsampledField
from daskreg.grid import Grid, Index, Region, Span, shrink_factors
from daskreg.kernels.device import host
from daskreg.planning import Plan
from daskreg.transforms.linear import scale_of, transform_points

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
SIZE = 32  # voxels along an edge of a cube as large as the smaller image
MOST = 2  # times the voxels of that cube: the fixed level has no more; along an axis at most 2 SIZE
# How often the fixed image has the moving one's volume from which on that level is a part of it: what the moving image covers and
# RIM voxels around that. Where this or filling leaves a part, the level of the whole image has at most WHOLE voxels. That box,
# around an image that may be turned, has up to MOST_OF_PART times the voxels of the cube; along an axis both have at most 4 SIZE
LARGER, WHOLE, MOST_OF_PART, RIM = 8.0, 1 << 21, 8, 5
SLAB = 32  # planes averaged together


@dataclass(frozen=True)
class CoarseImage:
    """Means over blocks of an image's voxels. weight: 0 to 1, the mean of the mask, None without one; 0 where filling may be."""

    voxels: Array
    grid: Grid
    weight: Array | None = None

    def part(self, region: Region) -> CoarseImage:
        """Some of its voxels."""
        weight = None if self.weight is None else self.weight[region.slices]
        return CoarseImage(self.voxels[region.slices], self.grid.crop(region), weight)

    def without(self, filling: float | None) -> CoarseImage:
        """Weight 0 where voxels have that value, and next to them, where it is mixed with others'."""
        if filling is None:
            return self
        region = grown(holds(self.voxels, filling))
        weight = np.ones(region.shape, np.float32) if self.weight is None else self.weight
        return replace(self, weight=np.where(region, np.float32(0), weight))


@dataclass(frozen=True)
class CoarsePair:
    """Both images, the world map that was found, and the displacement (3, Z, Y, X) in voxels of the fixed level, or None.

    factors: fine voxels of the fixed image in a coarse one;  region: of the whole image's coarse voxels those of ``fixed``;
    whole: how many there are
    """

    fixed: CoarseImage
    moving: CoarseImage
    world: Matrix
    displacement: Array | None
    factors: Index
    region: Region
    whole: Index

    def of_whole(self, states: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A map of ``fixed`` as one of the whole image, 0 where nothing was judged."""
        found = np.zeros(self.whole, np.uint8)
        found[self.region.slices] = states
        return found

    def sample(self, world: Matrix, u: Array | None = None, rim: int = 0) -> tuple[Array, Array]:
        """Moved and its weights at W (x + u(x)), on the fixed level and ``rim`` voxels around it.

        The weight is 0 where a point is further outside of the moving image than half a voxel.
        """
        to_moving = self.moving.grid.world_to_index @ world @ self.fixed.grid.index_to_world
        axes = [np.arange(-rim, n + rim, dtype=np.float64) for n in self.fixed.voxels.shape]
        at = np.stack(np.meshgrid(*axes, indexing="ij"))
        if u is not None:
            at += np.pad(u, ((0, 0), *((rim, rim),) * 3), mode="edge")
        at = np.tensordot(to_moving[:3, :3], at, 1) + to_moving[:3, 3].reshape(3, 1, 1, 1)
        shape = np.reshape(self.moving.voxels.shape, (3, 1, 1, 1))
        weight: Array = np.asarray(((at >= -0.5) & (at <= shape - 0.5)).all(axis=0), np.float32)
        if self.moving.weight is not None:
            weight = np.asarray(weight * map_coordinates(self.moving.weight, at, order=1, mode="nearest"), np.float32)
        moved = map_coordinates(self.moving.voxels, at, order=1, mode="nearest") * (weight > 0)
        return np.asarray(moved, np.float32), weight


def coarse_pair(plan: Plan, outcome: Outcome, images: tuple[Image, Image], comm: Communicator) -> CoarsePair:
    """The pair and the result at about SIZE^3 voxels, without the filling that a search left out; the same bits for every number
    of ranks.
    """
    filling = Filling.of_reports(outcome.levels)
    factors, kept = coarse_factors(plan, outcome), filling.kept(plan.fixed, plan.moving)
    fixed = _coarse(images[0], factors[0], comm).without(filling.fixed)
    moving = _coarse(images[1], factors[1], comm).without(filling.moving)
    u = None if outcome.displacement is None else _coarse_displacement(outcome.displacement, outcome.block, factors[0], comm)
    region, whole = _judged(fixed.grid, kept, outcome.affine), fixed.grid.shape
    part = None if u is None else u[(slice(None), *region.slices)]
    return CoarsePair(fixed.part(region), moving, outcome.affine, part, factors[0], region, whole)


def _coarse_displacement(u: Planes, block: Block, factors: Index, comm: Communicator) -> Array:
    """In voxels of the coarse level, on every rank; read a few planes at a time."""
    parts: list[list[Any]]
    if isinstance(u, UpsampledField):
        parts = [[sums] for sums in u.block_sums(block.own, factors)]
        return _displacement_means(parts, block, factors, comm)
    parts = [[], [], []]
    for z in range(block.own.start, block.own.stop, SLAB):
        some = on(block.device, u, Span(z, min(z + SLAB, block.own.stop)))
        for kept, component in zip(parts, some, strict=True):
            kept.append(plane_sums(component, factors))
    return _displacement_means(parts, block, factors, comm)


def _displacement_means(parts: list[list[Any]], block: Block, factors: Index, comm: Communicator) -> Array:
    """From the sums of each component's planes."""
    scale = np.reshape(factors, (3, 1, 1, 1)).astype(np.float32)
    means = [_over_planes(kept, block.shape[1:], factors, block.partition.slabs, comm) for kept in parts]
    return np.asarray(np.stack(means) / scale, np.float32)


def coarse_factors(plan: Plan, outcome: Outcome) -> tuple[Index, Index]:
    """Of both images, whose coarse voxels are then about as large as each other."""
    fixed, world = plan.fixed, outcome.affine
    kept = Filling.of_reports(outcome.levels).kept(fixed, plan.moving)
    scale = scale_of(world)
    edges = [float(np.prod(g.extent)) ** (1 / 3) for g in kept]
    voxel = min(edges[0], edges[1] / scale) / SIZE
    while not _fits(_trimmed(fixed, f := shrink_factors(fixed, voxel)), kept, world) and max(f) < max(fixed.shape):
        voxel *= 1.1
    return f, shrink_factors(plan.moving, voxel * scale)


def _fits(level: Grid, kept: tuple[Grid, Grid], world: Matrix) -> bool:
    """Whether a level of the fixed image, or what is judged of it, has few enough voxels."""
    part = _judged(level, kept, world)
    if part.shape == level.shape:
        return math.prod(level.shape) <= MOST * SIZE**3 and max(level.shape) <= 2 * SIZE
    return part.size <= MOST_OF_PART * SIZE**3 and math.prod(level.shape) <= WHOLE and max(level.shape) <= 4 * SIZE


def _judged(level: Grid, kept: tuple[Grid, Grid], world: Matrix) -> Region:
    """The voxels of a level of the fixed image that are judged: all around what is no filling, or around the moving image, where
    that is far smaller.

    kept: see ``Filling.kept``
    """
    fixed, moving = kept
    known = _around(level, fixed.corners(), 1)
    if float(np.prod(fixed.extent)) * scale_of(world) ** 3 < LARGER * float(np.prod(moving.extent)):
        return known
    covered = _around(level, transform_points(np.asarray(np.linalg.inv(world), np.float64), moving.corners()), RIM) & known
    return covered if covered.size else known


def _around(level: Grid, corners: Matrix, rim: int) -> Region:
    """The voxels of a level in a box that holds points and ``rim`` voxels around it, wherever a map that went astray leads."""
    at = level.to_index(corners)
    low, high = np.clip([np.floor(at.min(axis=0)), np.ceil(at.max(axis=0)) + 1], 0, level.shape).astype(int)
    return Region.of(map(int, low), map(int, high)).grow(rim) & Region((0, 0, 0), level.shape)


def _trimmed(grid: Grid, factors: Index) -> Grid:
    """The coarse grid without voxels that reach past the image."""
    z, y, x = (n // k for n, k in zip(grid.shape, factors, strict=True))
    return replace(grid.coarsen(factors), shape=(z, y, x))


def _coarse(image: Image, factors: Index, comm: Communicator) -> CoarseImage:
    grid = _trimmed(image.grid, factors)
    if isinstance(image, SourceImage):
        return _coarse_source(image, factors, grid, comm)
    if image.mask is None:
        return CoarseImage(_means(image, lambda voxels, _: voxels, factors, comm), grid)
    weight = _means(image, lambda _, mask: mask, factors, comm)
    weighted = _means(image, lambda voxels, mask: voxels * mask, factors, comm)
    return CoarseImage(np.asarray(weighted / np.maximum(weight, 1e-6), np.float32), grid, weight)


def _coarse_source(image: SourceImage, factors: Index, grid: Grid, comm: Communicator) -> CoarseImage:
    """As ``_coarse``, from boxes in the order in which the file is read."""
    found = [_over_planes([s], image.grid.shape[1:], factors, image.partition.slabs, comm) for s in image.block_sums(factors)]
    if len(found) == 1:
        return CoarseImage(found[0], grid)
    weighted, weight = found
    return CoarseImage(np.asarray(weighted / np.maximum(weight, 1e-6), np.float32), grid, weight)


def _means(image: Image, value: Callable[[Any, Any], Any], factors: Index, comm: Communicator) -> Array:
    """Means over blocks of what ``value`` makes of voxels and mask, of which this rank has its own planes, on every rank: each
    plane by itself, then over planes in order, so that the bits do not depend on who has which.
    """
    own = image.partition[image.rank]
    some = (Span(z, min(z + SLAB, own.stop)) for z in range(own.start, own.stop, SLAB))
    parts = [plane_sums(value(*image.read(planes)), factors) for planes in some]
    return _over_planes(parts, image.grid.shape[1:], factors, image.partition.slabs, comm)


def _over_planes(parts: list[Any], plane: tuple[int, ...], factors: Index, slabs: Sequence[Span], comm: Communicator) -> Array:
    """``_means`` from the sums of each plane."""
    columns = (plane[0] // factors[1], plane[1] // factors[2])
    mine = np.concatenate([host(p) for p in parts]) if parts else np.zeros((0, *columns), np.float32)
    whole = Span(0, slabs[-1].stop)
    first = slabs[comm.rank].start
    planes = gather_planes(comm, slabs, [whole] * comm.size, mine, first, "images") if comm.size > 1 else mine
    count = len(planes) // factors[0]
    sums = np.empty((count, *columns))
    for k in range(count):  # one after the other: all planes in double precision would take twice their memory
        sums[k] = planes[k * factors[0] : (k + 1) * factors[0]].astype(np.float64).sum(axis=0)
    return np.asarray(sums / math.prod(factors), np.float32)


def plane_sums(planes: Any, factors: Index) -> Any:
    """Sums over blocks (1, fy, fx); rows first, which are contiguous."""
    ny, nx = planes.shape[1] // factors[1], planes.shape[2] // factors[2]
    kept = planes[:, : ny * factors[1], : nx * factors[2]]
    rows = kept.reshape(len(planes), ny, factors[1], nx * factors[2]).sum(axis=2)
    return rows.reshape(len(planes), ny, nx, factors[2]).sum(axis=3)

"""What runs where: levels, partitions and residencies, as values without a method that computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from daskreg.config import Config, Optimised, Stage
from daskreg.grid import MINIMUM_PLANES, Grid, Index, Partition, Sigmas
from daskreg.planning.slabs import total_reach

COUNTED_BYTES = 2  # of integers each of whose values is counted: one pass over an image is then enough to scale it
RESIDENCIES = ("replicate", "window", "ring")
STATES = ("device", "host", "disk")
SOURCE = "source"  # of images that stay in their files
PLACES = (*STATES, SOURCE)  # of images
SIGMAS = 3  # at which a level's Gaussian is cut off
REACH_INTERVAL = 8  # iterations from one measurement of which moving planes are read to the next

AStage = TypeVar("AStage", bound=Stage)


@dataclass(frozen=True)
class Level:
    """One level of a stage: how both images are shrunk, the grids that gives, and who has which planes of them.

    partition: of the fixed level;  shards: of the moving level;  residency: where a rank finds the moving planes it reads;
    halo: planes around its own that a rank's arrays hold;  state: where displacement and optimizer state are (``STATES``), on the
    device with all buffers, or in the machine's memory or on disk, from where slabs of ``slab`` planes come to the device;
    images: likewise, where both images of the level are;  window: planes of the moving image that may be held then, and
    ``traded`` more for each plane that slabs are lower;  moving_sigmas: of the Gaussian of the moving level, in voxels of the
    moving image; None: half a voxel of the level.
    """

    scale: int
    fixed_factors: Index
    moving_factors: Index
    fixed: Grid
    moving: Grid
    iterations: int
    partition: Partition
    shards: Partition
    residency: str = "replicate"
    halo: int = 0
    state: str = "device"
    slab: int = 0
    images: str = "device"
    window: int | None = None
    traded: int = 0
    moving_sigmas: Sigmas | None = None

    def in_voxels(self, stage: AStage) -> AStage:
        """A stage with all lengths in voxels of the level."""
        return stage.in_voxels(self.fixed.edge_mm)

    @property
    def moving_made(self) -> bool:
        """Whether the moving level is another array than the moving image."""
        return max(self.moving_factors) > 1 or self.moving_sigmas is not None

    def alike(self) -> Level:
        """With the moving image shrunk as the fixed one, for images on the same grid."""
        return replace(
            self, moving_factors=self.fixed_factors, moving=self.fixed, shards=self.partition, moving_sigmas=None
        )  # fmt: skip

    @property
    def moving_rim(self) -> int:
        """Planes of the moving image, at its full resolution, around those of a rank that its planes of the level are made of."""
        wide = math.ceil(SIGMAS * self.moving_sigmas[0]) + 1 if self.moving_sigmas else 0
        return max(2 * self.moving_factors[0] + 2, wide) if self.moving_made else 0

    @classmethod
    def alone(cls, scale: int, f: Index, m: Index, fixed: Grid, moving: Grid, iterations: int) -> Level:
        """For one rank, of the full-resolution grids ``fixed`` and ``moving``."""
        a, b = fixed.coarsen(f), moving.coarsen(m)
        return cls(scale, f, m, a, b, iterations, Partition.of(a.shape[0], 1), Partition.of(b.shape[0], 1))


@dataclass(frozen=True)
class Encoding:
    """How an image is stored. piece: voxels that are decoded at once;  itemsize: bytes of a voxel;  counted: whether voxels are
    integers of so few bits that each value can be counted (``engine.source_statistics``).
    """

    piece: Index = (1, 1, 1)
    itemsize: int = 4
    counted: bool = False


@dataclass(frozen=True)
class Layout:
    """Both grids in one unit, the configuration, and the levels of each stage (none for moments and search).

    masks: whether fixed and moving have one;  workers: ranks;  memory: bytes each may use, None for no limit;
    minimum_planes: that a rank's slab has at least;  unpacked: bytes of the largest chunk of each image;  process: bytes of a
    worker's process without arrays;  host: bytes of the machine's memory that a worker's fields may take beside a GPU's; None:
    its memory is that of ``memory``;  images: where both images at full resolution are (``PLACES``);
    orders: which axes of the stored fixed and moving image the axes of all grids here are; the first is cut;
    encodings: how the images, as the ranks see them, are stored;  asked: residency, state and place of the images as asked for.
    """

    fixed: Grid
    moving: Grid
    config: Config
    levels: tuple[tuple[Level, ...], ...]
    masks: tuple[bool, bool] = (False, False)
    workers: int = 1
    memory: int | None = None
    minimum_planes: int = MINIMUM_PLANES
    unpacked: tuple[int, int] = (0, 0)
    process: int = 0
    host: int | None = None
    images: str = "device"
    encodings: tuple[Encoding, Encoding] = (Encoding(), Encoding())
    orders: tuple[Index, Index] = ((0, 1, 2), (0, 1, 2))
    asked: tuple[str, str, str] = ("auto", "auto", "auto")

    def stored_shapes(self, fixed: Grid, moving: Grid) -> tuple[Index, Index]:
        """Shapes of a fixed and a moving grid of the plan along the axes of the stored images, z, y, x."""
        z, y, x = (tuple(g.shape[o.index(a)] for g, o in zip((fixed, moving), self.orders, strict=True)) for a in range(3))
        return (z[0], y[0], x[0]), (z[1], y[1], x[1])

    @property
    def deformable(self) -> bool:
        """Whether a displacement field comes out."""
        return any(stage.name == "deformable" for stage in self.config.stages)

    @cached_property
    def partition(self) -> Partition:
        """Of the fixed image at full resolution."""
        return Partition.of(self.fixed.shape[0], self.workers, self.minimum_planes)

    @cached_property
    def shards(self) -> Partition:
        """Of the moving image at full resolution."""
        return Partition.of(self.moving.shape[0], self.workers, self.minimum_planes)

    @property
    def full(self) -> Level:
        """Both images at full resolution, as the result is measured and written."""
        whole = (1, 1, 1)
        return Level(1, whole, whole, self.fixed, self.moving, 0, self.partition, self.shards)

    @property
    def rims(self) -> tuple[int, int]:
        """Planes of fixed and moving image that a rank reads around its own: shrinking and the finest level's halo need them."""
        if self.workers == 1:
            return 0, 0
        levels = [level for stage in self.levels for level in stage]
        f = max((2 * lv.fixed_factors[0] + 2 for lv in levels if max(lv.fixed_factors) > 1), default=0)
        m = max((lv.moving_rim for lv in levels), default=0)
        if self.images == SOURCE:
            return 0, 0  # a rank reads whatever it needs
        if self.images != "device":  # no rank makes a level for another one
            stages = (lv.in_voxels(s) for s, some in zip(self.config.stages, self.levels, strict=True) for lv in some)
            reach = max((total_reach(s) for s in stages if isinstance(s, Optimised)), default=0)
            return max((lv.fixed_factors[0] * (reach + 2) + 2 for lv in levels), default=0), self.moving.shape[0]
        return max([f, *(lv.halo for lv in levels)]), m

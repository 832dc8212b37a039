"""A rank's part of the two images: float32, scaled to [0, 1], and their levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Config
from daskreg.engine.halo import gather_planes
from daskreg.engine.memory import trim
from daskreg.engine.planes import ArrayPlanes, Planes
from daskreg.errors import VoxelError, counted
from daskreg.grid import Grid, Index, Partition, Sigmas, Span
from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import CPU, Device, host, module_of
from daskreg.kernels.intensity_histogram.cpu import intensity_histogram
from daskreg.kernels.intrinsics.half import from_float16_bits, to_float16_bits
from daskreg.kernels.smoothing.downsampling import downsample_table, downsample_x, downsample_y, downsample_z

Array = NDArray[np.float32]
INTENSITY_BINS = (
    4096  # of the intensity histogram that percentiles come from: so intensities stay within +-4096, which float16 holds
)
SLAB = 32  # planes rounded together
LEAST_WEIGHT = np.float32(1e-6)  # of a coarse voxel: below it the mean is taken towards 0
LOG_FLOOR = 0.01  # logarithmic intensities: below this part of the range the curve is straight
FULL = (1, 1, 1)
Parts = Callable[[], Iterable[Array]]  # all of an image that is counted, part by part, as often as it is called


@dataclass(frozen=True)
class LevelPlanes:
    """A level of an image, wherever its planes are. voxels: float32 or the bits of float16;  mask: float32, None without one."""

    voxels: Planes
    mask: Planes | None

    @classmethod
    def of(cls, voxels: Array, mask: Array | None, first: int) -> LevelPlanes:
        """In memory, from plane ``first`` on."""
        return cls(ArrayPlanes(voxels[None], first), None if mask is None else ArrayPlanes(mask[None], first))


@dataclass
class Image:
    """A rank's planes of an image, scaled to [0, 1], and a rim around them that shrinking reads.

    grid, partition: of the whole image at full resolution;  held: the planes in ``voxels`` and ``mask``;  voxels: float32, or,
    between two calls of ``hold``, the bits of float16.
    """

    voxels: Array
    grid: Grid
    partition: Partition
    held: Span
    mask: Array | None = None
    rank: int = 0
    rim: int = 0
    left_out: int = 0  # voxels of the own planes that are stored background
    positive: int | None = None  # own voxels with a weight above 0, None where they are not counted yet
    _levels: dict[tuple[Index, Sigmas | None], tuple[Array, Array | None]] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        """Where its voxels are."""
        return Device("cuda", self.voxels.device.id) if on_device(self.voxels) else CPU  # type: ignore[attr-defined]

    @classmethod
    def whole(cls, voxels: Array, grid: Grid, mask: Array | None = None) -> Image:
        """All of an image in one place."""
        return cls(voxels, grid, Partition.of(grid.shape[0], 1), Span(0, grid.shape[0]), mask)

    def round(self) -> None:
        """Round the values to what float16 represents: conversion is lossless from then on."""
        for z in range(0, len(self.voxels), SLAB):
            self.voxels[z : z + SLAB] = from_float16_bits(to_float16_bits(self.voxels[z : z + SLAB]))

    def hold(self, *, half: bool) -> None:
        """Hold full resolution as the bits of float16, or as float32 again; lossless after ``round``."""
        if half != (self.voxels.dtype == np.uint16):
            self.voxels = converted(self.voxels, half)
            trim()  # no array that follows has that size

    def read(self, planes: Span) -> tuple[Array, Array | None]:
        """Voxels and mask of planes that are held; of an image in memory views."""
        at = planes.within(self.held) if len(planes) else slice(0, 0)
        return self.voxels[at], None if self.mask is None else self.mask[at]

    def out_of_memory(self, factors: Index, kept: bool, sigmas: Sigmas | None = None) -> bool:
        """Whether ``open`` gives planes that are out of the device's memory."""
        return False

    def open(
        self, factors: Index, wanted: Sequence[Span], comm: Communicator, half: bool = False, kept: bool = False,
        sigmas: Sigmas | None = None,
    ) -> LevelPlanes:  # fmt: skip
        """As ``gather_level``, wherever the level is; ``kept``: out of the device's memory, as full resolution of such an image
        always is.
        """
        return LevelPlanes.of(*self.gather_level(factors, wanted, comm, half, sigmas), wanted[self.rank].start)

    def gather_level(
        self, factors: Index, wanted: Sequence[Span], comm: Communicator, half: bool = False, sigmas: Sigmas | None = None
    ) -> tuple[Array, Array | None]:
        """Voxels and mask of a level: the planes that this rank wants, from the ranks that compute them; ``half``: as bits of
        float16;  sigmas: of the level's Gaussian, in voxels of the image; None: half a voxel of the level.
        """
        if self._at_hand(factors, sigmas):
            self._levels = {}  # as large as the image, where the last one was only smoothed
            ranks = range(len(self.partition.slabs))
            if all(len(w) == 0 or self._holds(r) & w == w for r, w in zip(ranks, wanted, strict=True)):
                voxels, mask = self.read(wanted[self.rank])
                return converted(voxels, half), mask
        owned = self.level_owners(factors[0])
        voxels, mask = self._own_level(factors, owned[self.rank], half, sigmas)
        if comm.size == 1:
            return voxels, mask
        first = owned[self.rank].start
        mask = None if mask is None else gather_planes(comm, owned, wanted, mask, first, "images")
        return gather_planes(comm, owned, wanted, voxels, first, "images"), mask

    def preview(self, levels: Iterable[Index], comm: Communicator) -> Image:
        """Whole coarse levels on every rank, for stages that share other things out than planes."""
        wanted = [Span(0, self.grid.shape[0] + 1)] * comm.size
        whole = Image(host(self.voxels[:0]), self.grid, Partition.of(self.grid.shape[0], 1), Span(0, 0))
        for factors in sorted(set(levels)):
            planes = self.grid.coarsen(factors).shape[0]
            voxels, mask = self.gather_level(factors, [w & Span(0, planes) for w in wanted], comm)
            whole._levels[factors, None] = host(voxels), None if mask is None else host(mask)
        return whole

    def to(self, device: Device) -> Image:
        """A preview with its levels on a device."""
        put = device.put
        kept = {level: (put(voxels), None if mask is None else put(mask)) for level, (voxels, mask) in self._levels.items()}
        return replace(self, voxels=put(self.voxels), _levels=kept)

    def _holds(self, rank: int) -> Span:
        return self.partition.around(rank, self.rim)

    def level_owners(self, factor: int) -> list[Span]:
        """Coarse planes that each rank computes: those whose centre is one of its planes."""
        m = -(-self.partition.planes // factor)
        slabs = self.partition.slabs
        starts = [min(m, max(0, -(-(s.start - factor // 2) // factor))) for s in slabs] + [m]
        starts = [a if len(s) else m for s, a in zip(slabs, starts)] + [m]
        return [Span(a, b) for a, b in pairwise(starts)]

    def _at_hand(self, factors: Index, sigmas: Sigmas | None) -> bool:
        """Whether the level is what ``read`` gives; a preview has levels alone."""
        return is_full(factors, sigmas) and (factors, sigmas) not in self._levels

    def _own_level(self, factors: Index, own: Span, half: bool, sigmas: Sigmas | None) -> tuple[Array, Array | None]:
        if self._at_hand(factors, sigmas):
            voxels, mask = self.read(own)
            return converted(voxels, half), mask
        level = factors, sigmas
        if level not in self._levels or half != (self._levels[level][0].dtype == np.uint16):
            self._levels = {level: self.coarse(factors, own, half, sigmas)}
        return self._levels[level]

    def coarse(self, factors: Index, own: Span, half: bool, sigmas: Sigmas | None = None) -> tuple[Array, Array | None]:
        """Planes of a coarse level, from what is held, and the mask there; ``sigmas``: as in ``gather_level``."""
        mask = None if self.mask is None else self._downsampled(self.mask, factors, own, sigmas)
        return converted(self._smaller(factors, own, mask, sigmas), half), mask

    def _smaller(self, factors: Index, own: Span, weight: Array | None, sigmas: Sigmas | None) -> Array:
        """Means of the voxels weighted by the mask, whose own means are ``weight``: masked voxels do not blur into others."""
        voxels = converted(self.voxels, False)
        if self.mask is None or weight is None:
            return self._downsampled(voxels, factors, own, sigmas)
        smaller = self._downsampled(voxels * self.mask, factors, own, sigmas)
        smaller /= module_of(smaller).maximum(weight, LEAST_WEIGHT)
        return smaller

    def _downsampled(self, voxels: Array, factors: Index, own: Span, sigmas: Sigmas | None) -> Array:
        if factors[0] == 1 and not (sigmas and sigmas[0]):
            voxels = voxels[own.within(self.held)] if len(own) else voxels[:0]
        return downsample(voxels, factors, self.held.start, own, self.grid.shape[0], sigmas)


def converted(voxels: Array, half: bool) -> Array:
    """As bits of float16 or as float32, whichever they are."""
    if half == (voxels.dtype == np.uint16):
        return voxels
    result: Array = to_float16_bits(voxels) if half else from_float16_bits(voxels)
    return result


def is_full(factors: Index, sigmas: Sigmas | None) -> bool:
    """Whether a level is the image at full resolution itself."""
    return factors == FULL and sigmas is None


def downsample(
    image: Array, factors: Index, lead: int = 0, own: Span | None = None, planes: int | None = None, sigmas: Sigmas | None = None
) -> Array:
    """Gaussian then resample, one axis after the other.

    lead: global plane of ``image[0]``;  own: coarse planes to make, of an image of ``planes`` (all by default);  sigmas: of the
    Gaussian, in voxels of ``image``; None: half a coarse voxel along axes that are shrunk.
    """
    wide: tuple[float | None, ...] = sigmas or (None, None, None)
    if factors[0] > 1 or wide[0]:
        first, table = downsample_table(planes or image.shape[0], factors[0], wide[0])
        rows = slice(None) if own is None else slice(own.start, own.stop)
        first, table = (module_of(image).asarray(a[rows]) for a in (first, table))
        smaller = module_of(image).empty((len(first), *image.shape[1:]), np.float32)
        downsample_z(smaller.shape, lead, first, table, image, smaller)
        image = smaller
    kernels: tuple[Any, ...] = (downsample_y, downsample_x)
    for axis, kernel in enumerate(kernels, 1):
        if factors[axis] > 1 or wide[axis]:
            first, table = (module_of(image).asarray(a) for a in downsample_table(image.shape[axis], factors[axis], wide[axis]))
            shape = tuple(len(first) if a == axis else n for a, n in enumerate(image.shape))
            smaller = module_of(image).empty(shape, np.float32)
            kernel(shape, first, table, image, smaller)
            image = smaller
    return image


def normalise(
    image: Array, config: Config, comm: Communicator, name: str, own: slice = slice(None), left_out: int = 0
) -> tuple[float, float]:
    """Scale intensities in place so that the configured percentiles become 0 and 1; returns those intensities.

    own: the planes that are counted here; others hold a rim of them too;  left_out: voxels of these that do not count, which have
    the least value of all. Raises VoxelError for NaN, infinite or constant images.
    """
    ends = intensity_range(lambda: [image[own]], config, comm, name, left_out)
    rescale(image, ends, config)
    return ends


def intensity_range(parts: Parts, config: Config, comm: Communicator, name: str, left_out: int = 0) -> tuple[float, float]:
    """The intensities that become 0 and 1, over all ranks; see ``normalise``."""
    low, high = _range(parts, comm, name)
    width = np.float32((high - low) / INTENSITY_BINS)
    here = np.zeros(INTENSITY_BINS, np.int64)
    for part in parts():
        counts = module_of(part).zeros((1 if on_device(part) else thread_count(), INTENSITY_BINS), np.int64)
        intensity_histogram(part.shape, counts, np.float32(low), width, part)
        here += host(counts.sum(axis=0))
    here[0] -= left_out
    return _percentiles(comm.sum_counts(here), config.percentiles, low, (high - low) / INTENSITY_BINS)


def intensity_range_of_values(
    values: Array, counts: NDArray[np.int64], config: Config, comm: Communicator, name: str
) -> tuple[float, float]:
    """As ``intensity_range``, from the values (n,) float32, rising, that an image has, and how many voxels have each."""
    there = values[counts > 0]
    low, high = _agreed(np.array([-there[0], there[-1]], np.float64) if len(there) else np.full(2, -np.inf), comm, name)
    width = (high - low) / INTENSITY_BINS
    bins = ((values - np.float32(low)) / np.float32(width)).clip(0, INTENSITY_BINS - 1).astype(np.int32)  # as the kernel does
    here = np.zeros(INTENSITY_BINS, np.int64)
    np.add.at(here, bins, counts)
    return _percentiles(comm.sum_counts(here), config.percentiles, low, width)


def rescale(image: Array, ends: tuple[float, float], config: Config) -> None:
    """``ends`` become 0 and 1, in place."""
    a, b = ends
    image -= np.float32(a)
    image *= np.float32(1 / (b - a))
    if config.intensity == "log":
        np.maximum(image, 0, out=image)
        image *= np.float32(1 / LOG_FLOOR)
        np.log1p(image, out=image)
        image *= np.float32(1 / np.log1p(1 / LOG_FLOOR))


def _range(parts: Parts, comm: Communicator, name: str) -> tuple[float, float]:
    both = comm.max(_negative_least_and_most(parts))
    if not np.isfinite(both).all():
        bad = int(comm.sum_counts(np.array([sum(part.size - int(np.isfinite(part).sum()) for part in parts())]))[0])
        raise VoxelError(
            f"{name} is NaN or infinite at {counted(bad, 'voxel')}; replace these values first, or leave NaN out with "
            '--background nan (background="nan").'
        )
    return _apart(both, name)


def _agreed(ends: NDArray[np.float64], comm: Communicator, name: str) -> tuple[float, float]:
    """Least and greatest over all ranks, of finite ones."""
    return _apart(comm.max(ends), name)


def _apart(both: NDArray[np.float64], name: str) -> tuple[float, float]:
    if both[1] + both[0] <= 0:
        raise VoxelError(f"{name} is constant: every voxel is {both[1]:g}; nothing can be registered to it.")
    return -float(both[0]), float(both[1])


def _negative_least_and_most(parts: Parts) -> NDArray[np.float64]:
    """NaN where any voxel is."""
    ends = [(-float(part.min()), float(part.max())) for part in parts() if part.size]
    return np.asarray(np.max([(-np.inf, -np.inf), *ends], axis=0))


def _percentiles(counts: NDArray[np.int64], percents: tuple[float, float], low: float, width: float) -> tuple[float, float]:
    """Bin edges below and above the percentiles of a histogram; apart by at least one bin."""
    share = np.cumsum(counts) / max(int(counts.sum()), 1) * 100
    first = int(np.searchsorted(share, percents[0], side="right")) if percents[0] > 0 else 0
    last = max(int(np.searchsorted(share, percents[1], side="left")) if percents[1] < 100 else INTENSITY_BINS - 1, first)
    return low + first * width, low + (last + 1) * width


def check_mask(mask: Array, name: str, comm: Communicator) -> Array:
    """Weights in [0, 1]. Raises VoxelError for an empty or non-finite mask."""
    return mask / np.float32(largest_weight(lambda: [mask], name, comm))


def largest_weight(parts: Parts, name: str, comm: Communicator) -> float:
    """Of a mask over all ranks. Raises VoxelError for an empty or non-finite mask."""
    ends = _negative_least_and_most(parts)
    low, top = comm.max(np.zeros(2) if np.isneginf(ends).all() else ends) * [-1, 1]  # an idle rank has no voxel
    if not np.isfinite([low, top]).all() or low < 0:
        raise VoxelError(f"{name} must hold weights of 0 and more; it has negative, NaN or infinite voxels.")
    if top <= 0:
        where = f"{name} is zero everywhere on the grid of its image"
        raise VoxelError(f"{where}: no voxel is left to register; give a mask with voxels above 0 there.")
    return float(top)

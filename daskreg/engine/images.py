"""The two images as the loop sees them: float32, scaled to [0, 1], at the level asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Config
from daskreg.errors import VoxelError
from daskreg.grid import Grid, Index
from daskreg.kernels.gaussian import shrink_table, shrink_x, shrink_y, shrink_z
from daskreg.kernels.histogram import intensity_histogram
from daskreg.kernels.launch import threads

Array = NDArray[np.float32]
BINS = 4096  # of the intensity histogram that percentiles come from
LOG_FLOOR = 0.01  # logarithmic intensities: below this part of the range the curve is straight


@dataclass
class Image:
    """A whole image and its grid; levels are made when asked for, the last one is kept."""

    voxels: Array
    grid: Grid
    mask: Array | None = None
    _kept: dict[Index, tuple[Array, Array | None]] = field(default_factory=dict)

    def level(self, factors: Index) -> tuple[Array, Array | None]:
        """Voxels and mask shrunk by ``factors`` (Gaussian, sigma half a coarse voxel, on the global grid)."""
        if factors == (1, 1, 1):
            return self.voxels, self.mask
        if factors not in self._kept:
            mask = None if self.mask is None else shrink(self.mask, factors)
            self._kept = {factors: (shrink(self.voxels, factors), mask)}
        return self._kept[factors]


def shrink(image: Array, factors: Index) -> Array:
    """Gaussian then resample, one axis after the other."""
    kernels: tuple[Any, ...] = (_shrink_z, shrink_y, shrink_x)
    for axis, (kernel, factor) in enumerate(zip(kernels, factors, strict=True)):
        if factor > 1:
            first, table = shrink_table(image.shape[axis], factor)
            shape = tuple(len(first) if a == axis else n for a, n in enumerate(image.shape))
            smaller = np.empty(shape, np.float32)
            kernel(shape, first, table, image, smaller)
            image = smaller
    return image


def _shrink_z(shape: Index, first: NDArray[np.int32], table: Array, image: Array, smaller: Array) -> None:
    shrink_z(shape, 0, first, table, image, smaller)


def normalise(image: Array, config: Config, comm: Communicator, name: str) -> tuple[float, float]:
    """Scale intensities in place so that the configured percentiles become 0 and 1; returns those intensities.

    Raises VoxelError for NaN, infinite or constant images.
    """
    low, high = _range(image, comm, name)
    counts = np.zeros((threads(), BINS), np.int64)
    width = np.float32((high - low) / BINS)
    intensity_histogram(image.shape, counts, np.float32(low), width, image)
    a, b = _percentiles(comm.sum_counts(counts.sum(axis=0)), config.percentiles, low, (high - low) / BINS)
    image -= np.float32(a)
    image *= np.float32(1 / (b - a))
    if config.intensity == "log":
        np.maximum(image, 0, out=image)
        image *= np.float32(1 / LOG_FLOOR)
        np.log1p(image, out=image)
        image *= np.float32(1 / np.log1p(1 / LOG_FLOOR))
    return a, b


def _range(image: Array, comm: Communicator, name: str) -> tuple[float, float]:
    both = comm.max(np.array([-float(image.min()), float(image.max())]))
    if not np.isfinite(both).all():
        bad = int(np.size(image) - np.isfinite(image).sum())
        raise VoxelError(
            f"{name} has {bad} voxels that are NaN or infinite; replace them (for instance by the background) first."
        )
    if both[1] + both[0] <= 0:
        raise VoxelError(f"{name} is constant: every voxel is {both[1]:g}; nothing can be registered to it.")
    return -float(both[0]), float(both[1])


def _percentiles(counts: NDArray[np.int64], percents: tuple[float, float], low: float, width: float) -> tuple[float, float]:
    """Bin edges below and above the percentiles of a histogram; apart by at least one bin."""
    share = np.cumsum(counts) / max(int(counts.sum()), 1) * 100
    first = int(np.searchsorted(share, percents[0], side="right")) if percents[0] > 0 else 0
    last = max(int(np.searchsorted(share, percents[1], side="left")) if percents[1] < 100 else BINS - 1, first)
    return low + first * width, low + (last + 1) * width


def check_mask(mask: Array, name: str) -> Array:
    """Weights in [0, 1]. Raises VoxelError for an empty or non-finite mask."""
    top = float(mask.max())
    if not np.isfinite(mask).all() or float(mask.min()) < 0:
        raise VoxelError(f"{name} must hold weights of 0 and more; it has negative, NaN or infinite voxels.")
    if top <= 0:
        raise VoxelError(f"{name} is zero everywhere: no voxel is left to register; give a mask with voxels above 0.")
    return mask / np.float32(top)

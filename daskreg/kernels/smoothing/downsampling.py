"""Gaussian downsampling of images by an integer factor, axis by axis."""

import math

import numpy as np
from numba import float32, int32, int64
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.smoothing.cpu import clamp

index = int64  # replaced by the launcher
ZERO = float32(0)


def downsample_table(n: int, factor: int, sigma: float | None = None) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Taps along an axis: the first fine voxel of each coarse voxel (m,) int32, and weights (m, taps) float32.

    Coarse voxel i is centred at f i + (f - 1)/2; sigma, in fine voxels, is half a coarse one by default. The
    Gaussian is truncated at three sigma and renormalised at the ends.
    """
    m = -(-n // factor)
    center = np.arange(m) * factor + (factor - 1) / 2
    sigma = 0.5 * factor if sigma is None else sigma
    first = np.ceil(center - 3 * sigma).astype(np.int32)
    at = first[:, None] + np.arange(math.floor(6 * sigma) + 1)
    near = np.abs(at - center[:, None]) <= 3 * sigma
    weights = np.where((at >= 0) & (at < n) & near, np.exp(-((at - center[:, None]) ** 2) / (2 * sigma**2)), 0)
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@voxelwise()
def downsample_z(z, y, x, lead, first, table, image, smaller):
    """Gaussian downsampling along z.

    lead: global plane at ``image[0]``;  first: (m,) int32, global fine plane of each coarse plane;  table: (m, taps) float32;
    image, smaller: (Z, Y, X) float32
    """
    total = ZERO
    for t in range(table.shape[1]):
        total += table[z, index(t)] * image[clamp(first[z] + int32(t) - int32(lead), image.shape[0]), y, x]
    smaller[z, y, x] = total


@voxelwise()
def downsample_y(z, y, x, first, table, image, smaller):
    """Gaussian downsampling along y, as ``downsample_z``."""
    total = ZERO
    for t in range(table.shape[1]):
        total += table[y, index(t)] * image[z, clamp(first[y] + int32(t), image.shape[1]), x]
    smaller[z, y, x] = total


@voxelwise()
def downsample_x(z, y, x, first, table, image, smaller):
    """Gaussian downsampling along x, as ``downsample_z``."""
    total = ZERO
    for t in range(table.shape[1]):
        total += table[x, index(t)] * image[z, y, clamp(first[x] + int32(t), image.shape[2])]
    smaller[z, y, x] = total

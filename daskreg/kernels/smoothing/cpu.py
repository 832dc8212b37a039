"""Separable Gaussian smoothing of vector fields, renormalised at the borders.

Weights come as a table with a row per voxel of the global axis: zero where a tap falls outside, the others renormalised. So no
voxel needs a border formula. Along x, where memory is contiguous, the interior uses constant weights held in registers.
"""

import math

import numpy as np
from numba import float32, int32, int64
from numpy.typing import NDArray

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise

index = int64  # replaced by the launcher
ZERO = float32(0)


def gaussian_radius(sigma: float) -> int:
    """Taps on each side: two sigma (5 taps for sigma 1, 3 for 0.5)."""
    return math.ceil(2 * sigma) if sigma > 0 else 0


def gaussian_weights(sigma: float) -> tuple[np.float32, ...]:
    """Normalised weights, 2 radius + 1 float32."""
    r = gaussian_radius(sigma)
    taps = np.exp(-(np.arange(-r, r + 1) ** 2) / (2 * sigma**2)) if r else np.ones(1)
    return tuple(np.float32(v) for v in taps / taps.sum())


def gaussian_table(n: int, sigma: float) -> NDArray[np.float32]:
    """(n, 2 radius + 1): the weights of every voxel of an axis."""
    weights = np.array(gaussian_weights(sigma), np.float64)
    r = len(weights) // 2
    at = np.arange(n)[:, None] + np.arange(-r, r + 1)
    table = np.where((at >= 0) & (at < n), weights, 0)
    table /= table.sum(axis=1, keepdims=True)
    inside = (at[:, 0] >= 0) & (at[:, -1] < n)
    return np.where(inside[:, None], np.array(gaussian_weights(sigma)), table.astype(np.float32)).astype(np.float32)


def gaussian_norms(n: int, sigma: float) -> NDArray[np.float32]:
    """(n,): 1 / the sum of the weights inside the axis; exactly 1 where all are inside."""
    weights = np.array(gaussian_weights(sigma), np.float64)
    r = len(weights) // 2
    at = np.arange(n)[:, None] + np.arange(-r, r + 1)
    inside = (at >= 0) & (at < n)
    return np.where(inside.all(axis=1), 1.0, 1 / np.where(inside, weights, 0).sum(axis=1)).astype(np.float32)


def gaussian_shares(n: int, sigma: float) -> NDArray[np.float32]:
    """(n,): the sum of the squares of every voxel's weights along an axis, the share of a variance that their mean has."""
    sums: NDArray[np.float64] = np.square(gaussian_table(n, sigma), dtype=np.float64).sum(axis=1)
    return sums.astype(np.float32)


@formula
def clamp(i, n):
    """The index in 0 .. n - 1 nearest to i."""
    return index(min(max(i, int32(0)), int32(n) - int32(1)))


@formula
def filter_x(c, z, y, x, inside, reach, table, weights, source):
    """The filtered value along x at one voxel of component c."""
    total = ZERO
    if inside:
        for t in range(len(weights)):
            total += weights[t] * source[c, z, y, index(index(x + index(t)) - index(reach))]
    else:
        for t in range(len(weights)):
            total += table[x, index(t)] * source[c, z, y, clamp(int32(x) + int32(t) - int32(reach), source.shape[3])]
    return total


@voxelwise()
def smooth_z(z, y, x, table, weights, source, smoothed):
    """Gaussian along z.

    table: (Z, taps) float32, the rows of this block;  weights: tuple of taps, so that the compiler unrolls the loop;
    source, smoothed: (3, Z, Y, X) float32
    """
    reach = int32(len(weights) // 2)
    for c in range(3):
        total = ZERO
        for t in range(len(weights)):
            k = clamp(int32(z) + int32(t) - reach, source.shape[1])
            total += table[z, index(t)] * source[index(c), k, y, x]
        smoothed[index(c), z, y, x] = total


@voxelwise()
def smooth_y(z, y, x, table, weights, source, smoothed):
    """Gaussian along y; table: (Y, taps) float32;  weights: tuple of taps;  source, smoothed: (3, Z, Y, X) float32."""
    reach = int32(len(weights) // 2)
    for c in range(3):
        total = ZERO
        for t in range(len(weights)):
            total += table[y, index(t)] * source[index(c), z, clamp(int32(y) + int32(t) - reach, source.shape[2]), x]
        smoothed[index(c), z, y, x] = total


@voxelwise(border=True)
def smooth_x(z, y, x, inside, reach, table, weights, source, smoothed):
    """Gaussian along x.

    reach: taps on each side;  table: (X, taps) float32;  weights: tuple of interior taps;
    source, smoothed: (3, Z, Y, X) float32
    """
    for c in range(3):
        smoothed[index(c), z, y, x] = filter_x(index(c), z, y, x, inside, reach, table, weights, source)

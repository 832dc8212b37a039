"""Filters of whole arrays along their last three axes: by SciPy on a CPU, by products with banded matrices on a GPU.

``cupyx.scipy.ndimage`` compiles a kernel for every width of a filter, which takes longer than all that a search filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import module_of, scipy_of

TRUNCATE = 4.0  # sigmas at which a Gaussian ends, as SciPy's


def gaussian(array: Any, sigma: NDArray[np.float64]) -> Any:
    """A Gaussian of an array (..., Z, Y, X), 0 outside; sigma: (3,) voxels."""
    if not on_device(array):
        return scipy_of(array).ndimage.gaussian_filter(array, (0,) * (array.ndim - 3) + tuple(sigma), mode="constant")
    return filtered(array, [gaussian_matrix(n, s) for n, s in zip(array.shape[-3:], sigma, strict=True)])


def box_around(region: Any, reach: NDArray[np.int64]) -> Any:
    """A region (Z, Y, X) bool and all within a box around each of its voxels; reach: (3,) voxels to each side."""
    if not on_device(region):
        return scipy_of(region).ndimage.maximum_filter(region.astype(np.uint8), [2 * int(r) + 1 for r in reach]) > 0
    matrices = [band_matrix(n, int(r)) for n, r in zip(region.shape, reach, strict=True)]
    return filtered(region.astype(np.float32), matrices) > 0.5


def gaussian_matrix(n: int, sigma: float) -> NDArray[np.float32]:
    """(n, n): SciPy's weights of every voxel of an axis for every voxel."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / max(sigma, 1e-12)) ** 2)
    weights /= 2 * weights.sum() - weights[0]
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return np.where(apart <= radius, weights[np.minimum(apart, radius)], 0).astype(np.float32)


def band_matrix(n: int, reach: int) -> NDArray[np.float32]:
    """(n, n): 1 where two voxels of an axis are at most so far apart."""
    return np.asarray(np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= reach, np.float32)


def filtered(array: Any, matrices: list[NDArray[np.float32]]) -> Any:
    """The product with a symmetric matrix along each of the last three axes."""
    xp = module_of(array)
    z, y, x = (xp.asarray(m) for m in matrices)
    along_z = xp.matmul(z, array.reshape(*array.shape[:-2], -1)).reshape(array.shape)
    return xp.matmul(xp.matmul(y, along_z), x)

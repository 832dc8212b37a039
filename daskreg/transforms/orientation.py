"""Orientation tensors of edges: what a search over rotations compares.

At every voxel T = g g^T / (|g|^2 + eta^2), with g the gradient of the smoothed image. T does not depend on the sign of an edge
and little on its height, so two modalities agree on it; unlike edges themselves, tensors can be averaged over coarse voxels
without cancelling; and under a rotation they are transformed, not computed again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid
from daskreg.kernels.device import module_of
from daskreg.kernels.smoothing.whole_arrays import gaussian

PAIRS = (
    (0, 0),
    (1, 1),
    (2, 2),
    (0, 1),
    (0, 2),
    (1, 2),
)  # components of a symmetric tensor, as they are stored
EDGE_SIGMA = 0.5  # voxels of the search: of the image, before its gradient
TENSOR_SIGMA = 0.8  # of the tensors: about what the distance between two rotations of the grid moves the outer voxels by
LOCAL_SIGMA = 4.0  # of the local mean that is taken off: what is alike everywhere tells nothing about where
NOISE = 0.4  # eta, of the root mean square of the gradient's length
_HALF, _SIXTH, _DOUBLE = 0.5**0.5, 6**-0.5, 2**0.5
DEVIATOR = np.array(  # orthonormal components of the trace-free part, (5, 6)
    [
        [_HALF, -_HALF, 0, 0, 0, 0],
        [-_SIXTH, -_SIXTH, 2 * _SIXTH, 0, 0, 0],
        [0, 0, 0, _DOUBLE, 0, 0],
        [0, 0, 0, 0, _DOUBLE, 0],
        [0, 0, 0, 0, 0, _DOUBLE],
    ]
)

_FROM_DEVIATOR = np.linalg.pinv(DEVIATOR)
_UNITS = np.array([[[(i, j) in (pair, pair[::-1]) for j in range(3)] for i in range(3)] for pair in PAIRS], float)  # (6, 3, 3)


def orientation_tensors(image: Any, inside: Any, grid: Grid, voxel: float) -> Any:
    """Smoothed tensors less their local mean, (6, Z, Y, X) float32, world axes.

    inside: (Z, Y, X) bool, the voxels that count;  voxel: edge of a voxel of the search, world units, which all sigmas refer to
    """
    xp, spacing = module_of(image), np.asarray(grid.spacing)
    weight = inside.astype(np.float32)
    narrow = np.sqrt(np.maximum((EDGE_SIGMA * voxel) ** 2 - (0.5 * spacing) ** 2, 0)) / spacing  # a level is smoothed already
    g = _world_gradient(WeightedGaussian(weight, narrow)(image), grid, voxel)
    square = (g**2).sum(axis=0)
    eta = NOISE**2 * (square * weight).sum() / xp.maximum(weight.sum(), 1)
    products = xp.stack([g[i] * g[j] for i, j in PAIRS]) / xp.maximum(square + eta, 1e-30)
    smooth, local = (WeightedGaussian(weight, sigma * voxel / spacing) for sigma in (TENSOR_SIGMA, LOCAL_SIGMA))
    tensors = smooth(products)
    return weight * (tensors - local(tensors))


class WeightedGaussian:
    """A Gaussian over the voxels with weight only, normalised by their weights; sigma: (3,) voxels."""

    def __init__(self, weight: Any, sigma: NDArray[np.float64]) -> None:
        self.weight, self.sigma = weight, sigma
        self.total = module_of(weight).maximum(gaussian(weight, sigma), 1e-3)

    def __call__(self, images: Any) -> Any:
        """Of images (..., Z, Y, X) on the same grid."""
        return (gaussian(images * self.weight, self.sigma) / self.total).astype(np.float32)


def _world_gradient(image: Any, grid: Grid, voxel: float) -> Any:
    """(3, Z, Y, X), per voxel of the search."""
    xp = module_of(image)
    steps = [xp.gradient(image, axis=a) if n > 1 else xp.zeros_like(image) for a, n in enumerate(image.shape)]
    to_world = np.asarray(grid.direction) * (voxel / np.asarray(grid.spacing))
    return xp.stack([sum(np.float32(to_world[k, a]) * steps[a] for a in range(3)) for k in range(3)])


def rotated(tensors: Any, linear: NDArray[np.float64]) -> Any:
    """Of tensors (6, ...) at moving points, those of the image pulled back by ``linear``: trace-free, orthonormal, (5, ...).

    linear: (3, 3), from the axes of the result to the world of the tensors; its scale does not count
    """
    xp = module_of(tensors)
    mix = (DEVIATOR @ _pulled_back(linear / abs(np.linalg.det(linear)) ** (1 / 3))).astype(np.float32)
    return xp.einsum("ij,jzyx->izyx", xp.asarray(mix), tensors)  # not by BLAS, whose threads would wait for each other


def along_axes(tensors: Any, frame: NDArray[np.float64]) -> Any:
    """Tensors (6, ...) in world axes, without their trace, along the columns of ``frame``."""
    xp = module_of(tensors)
    trace_free = np.eye(6)
    trace_free[:3, :3] -= 1 / 3
    return xp.einsum("ij,jzyx->izyx", xp.asarray((trace_free @ _pulled_back(frame)).astype(np.float32)), tensors)


def mixing(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(5, 5): the components of L^T T L from those of T, both trace-free and orthonormal; orthogonal L."""
    return np.asarray(DEVIATOR @ _pulled_back(linear) @ _FROM_DEVIATOR)


def _pulled_back(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6, 6): the components of L^T T L from those of T."""
    pulled = linear.T @ _UNITS @ linear
    return np.array([pulled[:, a, b] for a, b in PAIRS])

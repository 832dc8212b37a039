"""Moments of an image: the centre of mass, and the principal axes of its second moments."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid


def center_of_mass(image: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """World position, (3,), with intensities as mass, negative ones as 0; the centre of the grid for an image without mass."""
    mass = np.maximum(image, 0)
    total = float(mass.sum(dtype=np.float64))
    if total <= 0:
        return grid.center
    at = [
        float(mass.sum(axis=tuple(a for a in range(3) if a != k), dtype=np.float64) @ np.arange(n))
        for k, n in enumerate(mass.shape)
    ]
    return grid.to_world(np.array(at) / total)


def principal_axes(image: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """World directions of increasing variance, the columns of a right-handed (3, 3)."""
    mass = np.maximum(image, 0).astype(np.float64)
    covariance = _index_covariance(mass, grid.to_index(center_of_mass(image, grid)))
    to_world = grid.index_to_world[:3, :3]
    axes = np.asarray(np.linalg.eigh(to_world @ covariance @ to_world.T)[1])
    return np.asarray(axes * np.array([1.0, 1.0, np.sign(np.linalg.det(axes))]))


def _index_covariance(mass: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Second central moments of a mass distribution, (3, 3), in voxels squared."""
    offsets = [np.arange(n) - c for n, c in zip(mass.shape, center, strict=True)]
    total = max(float(mass.sum()), 1e-30)
    covariance = np.empty((3, 3))
    for a, b in itertools.product(range(3), repeat=2):
        factors = (np.ones(n) if c not in (a, b) else offsets[c] ** (2 if a == b else 1) for c, n in enumerate(mass.shape))
        covariance[a, b] = float((mass * np.einsum("i,j,k", *factors)).sum()) / total
    return covariance


def axis_rotations(fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The four proper rotations that map the fixed image's axes to the moving one's: the axes' signs are arbitrary."""
    signs = ([1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0])
    return [moving @ np.diag(s) @ fixed.T for s in signs]

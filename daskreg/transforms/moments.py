"""Where the mass of an image is and how it lies."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Grid


def center_of_mass(image: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """World position, intensities as mass (negative ones count 0); the middle of the grid for an image without mass."""
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
    """Columns: world directions from least to most spread, right-handed (3, 3)."""
    mass = np.maximum(image, 0).astype(np.float64)
    center = grid.to_index(center_of_mass(image, grid))
    along = [np.arange(n) - c for n, c in zip(mass.shape, center, strict=True)]
    spread = np.empty((3, 3))
    for a, b in itertools.product(range(3), repeat=2):
        w = np.einsum(
            "i,j,k", *(np.ones(n) if c not in (a, b) else along[c] ** (2 if a == b else 1) for c, n in enumerate(mass.shape))
        )
        spread[a, b] = float((mass * w).sum()) / max(float(mass.sum()), 1e-30)
    to_world = grid.index_to_world[:3, :3]
    axes = np.asarray(np.linalg.eigh(to_world @ spread @ to_world.T)[1])
    return np.asarray(axes * np.array([1.0, 1.0, np.sign(np.linalg.det(axes))]))


def axis_rotations(fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The four proper rotations that bring the fixed image's axes onto the moving one's: their signs mean nothing."""
    signs = ([1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0])
    return [moving @ np.diag(s) @ fixed.T for s in signs]

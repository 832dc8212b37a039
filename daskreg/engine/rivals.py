"""Other poses, refined: whether one of them is more alike than the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from daskreg.engine.coarse_pair import CoarseImage, CoarsePair
from daskreg.transforms.linear import linear_about, scale_of, transform_points, translation

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
# of moved and its weight: squared correlation, and where it counts
Compare = Callable[[Array, Array], tuple[Array, NDArray[np.bool_]]]
REFINED = 8  # poses
ITERATIONS = 8
STEP = 0.1  # voxels of the halved level, by which slopes are measured
APART = 3.0  # voxels: poses whose corners are nearer, in the mean, are the same


def halved(pair: CoarsePair) -> CoarsePair:
    """The pair with voxels twice as large, without displacement."""
    return replace(pair, fixed=_halved(pair.fixed), moving=_halved(pair.moving), displacement=None)


def _halved(image: CoarseImage) -> CoarseImage:
    factors = [2 if n >= 8 else 1 for n in image.voxels.shape]
    shape = [n // k for n, k in zip(image.voxels.shape, factors, strict=True)]
    z, y, x = factors
    grid = replace(image.grid.coarsen((z, y, x)), shape=tuple(shape))

    def means(values: Array) -> Array:
        kept = values[tuple(slice(0, n * k) for n, k in zip(shape, factors, strict=True))]
        blocks = kept.reshape(shape[0], z, shape[1], y, shape[2], x).mean(axis=(1, 3, 5), dtype=np.float64)
        return np.asarray(blocks, np.float32)

    return CoarseImage(means(image.voxels), grid, None if image.weight is None else means(image.weight))


def best_rival(
    pair: CoarsePair, starts: Sequence[Matrix], middle: Matrix, compare: Compare, make: Callable[[CoarsePair], Compare]
) -> float:
    """The merit of the best of several poses after a refinement, 0 where all of them lead back to the result.

    starts: world maps, the most alike first;  middle: what rotations are about;  compare: on the pair;  make: on the halved one
    """
    small = halved(pair)
    coarse, corners, found = make(small), pair.fixed.grid.corners(), [0.0]
    edge = float(np.mean(pair.fixed.grid.spacing))
    for start in starts[:REFINED]:
        world = _refined(small, start, middle, coarse)
        apart = transform_points(world, corners) - transform_points(pair.world, corners)
        if float(np.linalg.norm(apart, axis=1).mean()) > APART * edge * scale_of(pair.world):
            moved, weight = pair.sample(world)
            found.append(merit(*compare(moved, weight)))
    return max(found)


def merit(squared: Array, counts: NDArray[np.bool_]) -> float:
    """The mean of what counts, less where little does: chance alone makes few voxels alike."""
    n = int(counts.sum())
    return float(squared[counts].sum(dtype=np.float64)) / max(n, 1) * float(np.sqrt(n / counts.size)) if n else 0.0


def _refined(pair: CoarsePair, start: Matrix, middle: Matrix, compare: Compare) -> Matrix:
    """By a few steps of rotation and shift, slopes by differences."""
    grid = pair.fixed.grid
    voxel, radius = float(np.mean(grid.spacing)), float(np.linalg.norm(grid.extent)) / 4

    def world(q: NDArray[np.float64]) -> Matrix:
        turn = np.asarray(Rotation.from_rotvec(q[:3] * voxel / radius).as_matrix())
        return start @ translation(q[3:] * voxel) @ linear_about(middle, turn)

    def loss(q: NDArray[np.float64]) -> float:
        return -1.0 * merit(*compare(*pair.sample(world(q))))

    options: Any = {"maxiter": ITERATIONS, "eps": STEP, "maxls": 6}
    found = minimize(loss, np.zeros(6), method="L-BFGS-B", options=options)
    return world(found.x)

"""How far a result is from the nearest pose in which edges agree best: a result that stays put may be right, one that moves is
not where it could be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.coarse_pair import CoarsePair
from daskreg.engine.edge_images import ComparedPart, near_object, tensor_field
from daskreg.grid import Grid
from daskreg.transforms.linear import scale_of
from daskreg.transforms.pose_refinement import PoseRefinement

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
DRIFT = 0.9  # voxels of the level: of the poses tuned on, right ones (within half a voxel) moved less, those a voxel off further
STEPS = 12  # of the refinement
MARGIN = 2.0  # voxels around what is not filling
MOST_POINTS = 4096  # over which the distance is a mean


@dataclass(frozen=True)
class Drift:
    """Where a refinement of a result's pose by smoothed edges leads.

    distance: from the result, the mean over what was compared, in voxels of the level;  own, refined: agreement of edges, their
    correlation times the root of the overlap, of the result and where it leads
    """

    distance: float = 0.0
    own: float = 0.0
    refined: float = 0.0


def find_drift(pair: CoarsePair, u: Array | None, compared: NDArray[np.bool_], *, scaled: bool) -> Drift:
    """Of the pose of a result with a displacement (3, Z, Y, X), in voxels, held as it is, or without one.

    compared: voxels of the fixed level that count;  scaled: whether the map's scale is refined too
    """
    if not compared.any():
        return Drift()
    grid = pair.fixed.grid
    voxel = float(np.prod(grid.spacing)) ** (1 / 3)
    moving, world = _moving(pair, u)
    parts = _part(grid, pair.fixed.voxels, pair.fixed.weight, voxel), _part(moving.grid, moving.voxels, moving.weight, voxel)
    fixed, other = (tensor_field(part, size) for part, size in zip(parts, (voxel, voxel * scale_of(world)), strict=True))
    refinement = PoseRefinement(fixed, other, scaled=scaled)
    before, after = (refinement.refined(world[None], steps) for steps in (0, STEPS))
    points = grid.to_world(_some(np.argwhere(compared)))
    apart = _mapped(after.world[0], points) - _mapped(world, points)
    distance = float(np.linalg.norm(apart, axis=1).mean()) / (voxel * scale_of(world))
    return Drift(distance, float(before.weight[0]), float(after.weight[0]))


@dataclass(frozen=True)
class _Seen:
    grid: Grid
    voxels: Array
    weight: Array | None


def _moving(pair: CoarsePair, u: Array | None) -> tuple[_Seen, Matrix]:
    """What is compared with the fixed image and its map: the moving image, or with a displacement the moved one."""
    if u is None:
        return _Seen(pair.moving.grid, pair.moving.voxels, pair.moving.weight), pair.world
    return _Seen(pair.fixed.grid, *pair.sample(pair.world, u)), np.eye(4)


def _part(grid: Grid, voxels: Array, weight: Array | None, voxel: float) -> ComparedPart:
    part = ComparedPart(grid, voxels, np.ones(voxels.shape, bool) if weight is None else weight > 0.5)
    return near_object(part, MARGIN * voxel)


def _some(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Evenly, at most MOST_POINTS."""
    return index[:: -(-len(index) // MOST_POINTS)]


def _mapped(world: Matrix, points: Matrix) -> Matrix:
    return np.asarray(points @ world[:3, :3].T + world[:3, 3])

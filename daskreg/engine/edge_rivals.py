"""Other poses by edges alone: whether a search over shifts and rotations finds one whose edges agree better than the result's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskreg.config import Search
from daskreg.engine.coarse_pair import CoarseImage, CoarsePair
from daskreg.engine.edge_images import ComparedPart, edge_field, near_object, tensor_field
from daskreg.engine.pose_search import lattice_bounds
from daskreg.engine.report import Watch
from daskreg.engine.rotation_lattice import RotationLattice
from daskreg.kernels.device import CPU
from daskreg.transforms.linear import scale_of, transform_points
from daskreg.transforms.pose_refinement import PoseRefinement, Poses
from daskreg.transforms.search import padded_shape

Matrix = NDArray[np.float64]
SIZE = 14  # voxels of the lattice along an edge of a cube as large as the smaller image
LARGEST_TRANSFORM = 60_000  # voxels: coarser where the images' sizes are far apart
TURNS = 3, 5  # small rotations, each in 24 right-angle ones, in the frame of the result and in that of the initial map
CANDIDATES = 64, 12  # that are refined on the lattice, and on one of half its voxels
STEPS = 8
APART = 3.0  # voxels of the lattice: poses whose corners are nearer, in the mean, are the same
STAYED = 1.0  # the same: a result that the refinement takes further was not there
MARGIN = 2.0  # voxels of the lattice around what is not filling
STAGE = Search(rotations="fine", contrast="any")


@dataclass(frozen=True)
class EdgeRivals:
    """The agreement of edges, their correlation times the root of the overlap, of the result and of the best other pose after the
    same refinement; 0 where nothing was compared.
    """

    own: float = 0.0
    rival: float = 0.0


def edge_rivals(pair: CoarsePair, start: Matrix) -> EdgeRivals:
    """Of the affine map of a result, in which displacements are left out.

    start: the initial world map, whose frame is tried beside the result's
    """
    voxel, corners = _voxel(pair), pair.fixed.grid.corners()
    parts = _part(pair.fixed, voxel), _part(pair.moving, voxel)
    own, found = pair.world[None], _correlated(pair, start, parts, voxel)
    for make, size, most in ((tensor_field, voxel, CANDIDATES[0]), (edge_field, voxel / 2, CANDIDATES[1])):
        fixed, moving = (make(part, size) for part in parts)
        refinement = PoseRefinement(fixed, moving, scaled=False)
        found = refinement.refined(np.concatenate([own, found.world[found.distinct(corners, voxel, most)]]), STEPS)
        own = found.world[:1]
    unit = voxel * scale_of(pair.world)
    apart = np.linalg.norm(points_of(found.world, corners) - transform_points(pair.world, corners), axis=2).mean(axis=1) / unit
    if apart[0] > STAYED:  # better a little further: what is found there is another pose
        here = float(refinement.refined(pair.world[None], 0).weight[0])
        other = apart > STAYED
    else:
        here, other = float(found.weight[0]), apart > APART
    order = np.flatnonzero(other)[np.argsort(-found.weight[other], kind="stable")]
    return EdgeRivals(here, float(found.weight[order[0]]) if len(order) else 0.0)


def points_of(worlds: Matrix, points: Matrix) -> Matrix:
    """Points (N, 3) under maps (K, 4, 4): (K, N, 3)."""
    return np.asarray(points @ worlds[:, :3, :3].transpose(0, 2, 1) + worlds[:, None, :3, 3])


def _correlated(pair: CoarsePair, start: Matrix, parts: tuple[ComparedPart, ComparedPart], voxel: float) -> Poses:
    """The best shifts for rotations around the result's, and around the initial map's at the result's scale."""
    rows = []
    for world, turns in zip((pair.world, start), TURNS, strict=True):
        linear = world[:3, :3] / scale_of(world)
        u, _, v = np.linalg.svd(linear)
        lattice = RotationLattice(STAGE, parts, u @ v * scale_of(pair.world), voxel)
        rows += lattice.correlate(lattice.turns[:turns], CPU, Watch())
    found = np.concatenate(rows)
    found = found[found[:, 0] > 0]
    return Poses(found[:, 2:].reshape(-1, 4, 4), found[:, 0], found[:, 1])


def _part(image: CoarseImage, voxel: float) -> ComparedPart:
    everywhere = np.ones(image.voxels.shape, bool)
    part = ComparedPart(image.grid, image.voxels, everywhere if image.weight is None else image.weight > 0.5)
    return near_object(part, MARGIN * voxel)


def _voxel(pair: CoarsePair) -> float:
    """Edge of the lattice's voxels, in the fixed image's world."""
    extents = pair.fixed.grid.extent, pair.moving.grid.extent / scale_of(pair.world)
    voxel = float(min(np.prod(e) ** (1 / 3) for e in extents)) / SIZE
    while math.prod(padded_shape(*lattice_bounds(extents, voxel), STAGE.overlap)) > LARGEST_TRANSFORM:
        voxel *= 1.05
    return voxel

"""Stages that find an initial map: moments, and the global search, on coarse levels that fit into the memory of every rank."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, SingleRank
from daskreg.config import Moments, Rigid, Search
from daskreg.engine.edge_images import whole
from daskreg.engine.global_search import level_at, run_search, search_levels
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss
from daskreg.engine.report import LevelReport, Watch
from daskreg.planning import Level
from daskreg.similarity import MI
from daskreg.transforms.linear import linear_about, transform_points, translation
from daskreg.transforms.moments import axis_rotations, center_of_mass, principal_axes

Matrix = NDArray[np.float64]
SHARE_DEADLINE = 600.0  # seconds that ranks wait for each other: their shares of a search may take unequally long
COMPARISON_SIZE = 48  # voxels along the longest axis of the level on which moments are taken


def run_initial(
    stage: Moments | Search, images: tuple[Image, Image], world: Matrix, comm: Communicator, watch: Watch
) -> tuple[Matrix, LevelReport]:
    """The stage's result, the same on every rank."""
    with comm.timeouts.at_least(SHARE_DEADLINE):
        if isinstance(stage, Search):
            levels = search_levels(stage, images, world)
            device = images[0].device
            seen = [i.preview(factors, comm).to(device) for i, factors in zip(images, levels, strict=True)]
            world, report = run_search(stage, (seen[0], seen[1]), world, comm, watch)
        else:
            level = moments_level(images)
            seen = [i.preview([k], comm) for i, k in zip(images, (level.fixed_factors, level.moving_factors), strict=True)]
            world, report = run_moments(stage, (seen[0], seen[1]), world)
        return comm.broadcast(np.ascontiguousarray(world)), report


def moments_level(images: tuple[Image, Image]) -> Level:
    """Both images as moments are taken of them."""
    return level_at(images, max(float(i.grid.extent.max()) for i in images) / COMPARISON_SIZE, 20)


def run_moments(stage: Moments, images: tuple[Image, Image], world: Matrix) -> tuple[Matrix, LevelReport]:
    """Centres of mass together, after ``world``; with ``orientation`` also the axes, by the sign choice of least loss."""
    start = time.perf_counter()
    level = moments_level(images)
    (f, _), (m, _) = whole(images[0], level.fixed_factors), whole(images[1], level.moving_factors)
    center, target = center_of_mass(f, level.fixed), center_of_mass(m, level.moving)
    mapped = transform_points(world, center)
    moved = translation(target - mapped) @ world
    candidates = [moved]
    if stage.orientation:
        rotations = axis_rotations(principal_axes(f, level.fixed), principal_axes(m, level.moving))
        candidates += [translation(target - center) @ linear_about(center, r) for r in rotations]
    loss = LinearLoss(Rigid(similarity=MI()), level, images, SingleRank())
    values = [loss.value(c)[0] for c in candidates]
    best = int(np.argmin(values))
    report = LevelReport("moments", level.scale, level.fixed.shape, [values[best]], time.perf_counter() - start)
    return candidates[best], report

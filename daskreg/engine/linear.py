"""Rigid, similarity and affine stages: a quasi-Newton step on a few parameters, level by level."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from daskreg.comm import Communicator
from daskreg.config import Linear
from daskreg.engine.images import Image
from daskreg.engine.report import LevelReport, Progress, Watch
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.kernels.sample import affine_sums, sample_affine
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level
from daskreg.similarity import make
from daskreg.transforms.linear import Kind, LinearModel, affine_slope, fixed_point, index_map, world_slope

LEAST = 0.02  # part of the fixed image that must stay inside the moving one


class _Plateau(Exception):
    pass


class LinearLoss:
    """Loss and gradient of one level as a function of a world matrix."""

    def __init__(self, stage: Linear, level: Level, fixed: Image, moving: Image, comm: Communicator) -> None:
        self.level, self.comm = level, comm
        self.fixed, fixed_mask = fixed.level(level.fixed_factors)
        self.moving, moving_mask = moving.level(level.moving_factors)
        self.similarity = make(stage.similarity)
        self.weights = Weights(fixed_mask, moving_mask, level.fixed.shape)
        self.moved = np.empty(level.fixed.shape, np.float32)
        self.fields = np.empty((3, *level.fixed.shape), np.float32)

    def value(self, world: NDArray[np.float64]) -> tuple[float, float, NDArray[np.generic], NDArray[np.float32]]:
        """Loss, N, the summed parts and the weights; leaves ``moved`` ready for ``gradient``."""
        place = (0, fixed_point(index_map(world, self.level.fixed, self.level.moving)))
        sample_affine(self.moved.shape, *place, self.moving, self.moved)
        weight = self.weights.at_affine(place)
        total = add_up(self.similarity.partial(self.fixed, weight, self.moved, self.fields), self.similarity, self.comm)
        loss, n = self.similarity.value(total)
        return loss, n, total, weight

    def perfect(self, world: NDArray[np.float64]) -> bool:
        """Whether moved is the fixed image already: nothing is better, whatever a loss gains by hiding voxels out of domain."""
        place = (0, fixed_point(index_map(world, self.level.fixed, self.level.moving)))
        sample_affine(self.moved.shape, *place, self.moving, self.moved)
        apart = np.array([1.0 - float(np.array_equal(self.moved, self.fixed))])
        return bool(self.comm.max(apart)[0] == 0)

    def __call__(self, world: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Loss and dC/dW (4, 4)."""
        loss, n, total, weight = self.value(world)
        if n < LEAST * self.moved.size and self.weights.fixed.size == 0:
            return 0.0, np.zeros((4, 4))
        self.similarity.finish(total, self.fixed, weight, self.moved, self.fields)
        place = (0, fixed_point(index_map(world, self.level.fixed, self.level.moving)))
        rows = affine_sums(self.moved.shape, *place, self.moving, self.moved)
        sums = self.comm.sum_planes(affine_slope(rows, 0)).reshape(3, 4) / max(n, 1e-30)
        slope = np.vstack([sums, np.zeros(4)])
        return loss, world_slope(slope, self.level.fixed, self.level.moving)


def run_linear(
    stage: Linear, level: Level, images: tuple[Image, Image], world: NDArray[np.float64], comm: Communicator, watch: Watch
) -> tuple[NDArray[np.float64], LevelReport]:
    """Refine ``world`` at one level: L-BFGS, one unit of a parameter moving the outer voxels by about one voxel of the level."""
    loss = LinearLoss(stage, level, *images, comm)
    if loss.perfect(world):
        return world, LevelReport(stage.name, level.scale, level.fixed.shape, [loss.value(world)[0]], stopped="at rest")
    grid = level.fixed
    radius = float(np.linalg.norm(grid.extent)) / 4
    model = LinearModel(cast("Kind", stage.name), grid.center, radius, world)
    unit = float(np.mean(grid.spacing))
    report = LevelReport(stage.name, level.scale, grid.shape)
    best: tuple[float, NDArray[np.float64]] = (np.inf, np.zeros(model.size))

    def evaluate(q: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        value, slope = loss(model.matrix(q * unit))
        best = min(best, (value, q.copy()), key=lambda pair: pair[0])
        return value, model.pull_back(q * unit, slope) * unit

    options: Any = {"maxiter": level.iterations, "maxcor": 12, "maxls": 12, "gtol": 1e-9, "ftol": 1e-9}
    plateau = Plateau(stage.tolerance, stage.window)

    def note(q: NDArray[np.float64]) -> None:
        report.losses.append(best[0])
        watch(Progress(stage.name, level.scale, len(report.losses), level.iterations, best[0]))
        if plateau.reached(report.losses):
            raise _Plateau

    start = time.perf_counter()
    try:
        minimize(evaluate, best[1], jac=True, method="L-BFGS-B", callback=cast("Any", note), options=options)
    except _Plateau:
        report.stopped = "plateau"
    report.seconds = time.perf_counter() - start
    return model.matrix(best[1] * unit), report

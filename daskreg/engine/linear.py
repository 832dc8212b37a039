"""Rigid, similarity and affine stages: a quasi-Newton step on a few parameters, level by level."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from daskreg.comm import Communicator
from daskreg.config import Linear
from daskreg.engine.halo import Block, Movement, finish
from daskreg.engine.images import Image
from daskreg.engine.reach import Place, Reach, affine_reach
from daskreg.engine.report import STOP, LevelReport, Progress, Watch
from daskreg.engine.sampler import make_sampler
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.kernels.device import host
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level
from daskreg.similarity import make
from daskreg.transforms.linear import (
    LinearKind,
    LinearModel,
    index_gradient_by_plane,
    index_map,
    linear_part,
    to_fixed_point,
    world_gradient,
)

Matrix = NDArray[np.float64]
HALT = -1.0
LEAST = 0.02  # part of the fixed image that must stay inside the moving one


class _Plateau(Exception):
    pass


class Halted(Exception):
    """All ranks were asked to stop, and do."""


class LinearLoss:
    """Loss and gradient of one level as a function of a world matrix; every rank calls it with the same."""

    def __init__(self, stage: Linear, level: Level, images: tuple[Image, Image], comm: Communicator) -> None:
        self.level, self.comm = level, comm
        self.similarity = make(stage.similarity)
        fixed, moving = images
        self.block = Block(level.fixed.shape, level.partition, comm.rank, level.halo, fixed.device)
        self.similarity.origin = self.block.first
        self.fixed, self.mask = fixed.deliver(level.fixed_factors, self.block.around(self.block.halo), comm)
        self.sampler = make_sampler(level.residency, moving, level.moving_factors, level.shards, comm)
        self.weights = Weights(self.mask, self.sampler.masked, self.block)
        self.moved = self.block.scalar()  # nothing but windows needs fields
        self.fields = self.block.vector() if self.similarity.reach else self.block.device.xp.empty((3, 0, 0, 0), np.float32)
        self.gradient = self.block.vector() if self.sampler.keeps_gradient else None
        self.window_halo = Movement(comm, self.block.partition.slabs, self.block.around(self.similarity.reach))

    def look(self, world: Matrix) -> Place:
        """Leave moved and weights ready."""
        matrix = index_map(world, self.level.fixed, self.level.moving)
        place = (self.block.first, to_fixed_point(matrix), linear_part(matrix))
        partition, needs = self.block.partition, affine_reach(place, self.block.partition, self.block.shape).needs
        self.sampler.prepare(Reach.of_slabs(partition, needs))  # a ring keeps the gradient of all planes, for ``sums``
        self.sampler.look(self.block.box(), place, None, self.moved, self.weights.seen, self.gradient)
        self.weights.combine()
        return place

    def value(self, world: Matrix) -> tuple[float, float, NDArray[np.generic], Place]:
        """Loss, N, the summed parts and the place; leaves ``moved`` ready for the gradient."""
        place = self.look(world)
        if self.similarity.reach:
            fields = [self.moved] if self.weights.seen is None else [self.moved, self.weights.seen]
            finish(self.window_halo.start(*((f, self.block.first) for f in fields)))
        part = self.similarity.partial(self.block.box(), self.fixed, self.weights.array, self.moved, self.fields)
        total = add_up(part, self.similarity, self.comm, self.block.partition)
        loss, n = self.similarity.value(total)
        return loss, n, total, place

    def perfect(self, world: Matrix) -> bool:
        """Whether moved is the fixed image already: nothing is better, whatever a loss gains by hiding voxels out of domain."""
        self.look(world)
        own = self.block.inner
        apart = np.array([1.0 - float(np.array_equal(self.moved[own], self.fixed[own]))])
        return bool(self.comm.max(apart)[0] == 0)

    def __call__(self, world: Matrix) -> tuple[float, NDArray[np.float64]]:
        """Loss and dC/dW (4, 4)."""
        loss, n, total, place = self.value(world)
        if n < LEAST * math.prod(self.block.shape) and self.mask is None:
            return 0.0, np.zeros((4, 4))
        box = self.block.box()
        self.similarity.finish(box, total, self.fixed, self.weights.array, self.moved, self.fields)
        rows = self.sampler.sums(box, place, self.moved, self.gradient)
        planes = index_gradient_by_plane(host(rows), self.block.own.start)
        sums = self.comm.sum_planes(planes, self.block.partition.lengths).reshape(3, 4) / max(n, 1e-30)
        return loss, world_gradient(np.vstack([sums, np.zeros(4)]), self.level.fixed, self.level.moving)


class Lead:
    """Rank 0 decides where to look next, the others follow: a quasi-Newton step need not come out alike on two processors."""

    def __init__(self, loss: LinearLoss, comm: Communicator) -> None:
        self.loss, self.comm = loss, comm

    def __call__(self, world: Matrix) -> tuple[float, NDArray[np.float64]]:
        """On rank 0: loss and slope there, by all ranks."""
        self.comm.broadcast(np.concatenate([world.ravel(), [1.0]]))
        return self.loss(world)

    def done(self, world: Matrix) -> Matrix:
        """On rank 0: let the others go, with the result."""
        return self._world(self.comm.broadcast(np.concatenate([world.ravel(), [0.0]])))

    def halt(self) -> None:
        """On rank 0: tell the others to stop."""
        self.comm.broadcast(np.full(17, HALT))

    def follow(self) -> Matrix:
        """On the other ranks: look where rank 0 looks, until it has finished."""
        while True:
            told = self.comm.broadcast(np.zeros(17))
            if told[16] == HALT:
                raise Halted
            if told[16] == 0:
                return self._world(told)
            self.loss(self._world(told))

    @staticmethod
    def _world(told: NDArray[np.float64]) -> Matrix:
        return np.array(told[:16]).reshape(4, 4)


def run_linear(
    stage: Linear, level: Level, images: tuple[Image, Image], world: Matrix, comm: Communicator, watch: Watch
) -> tuple[Matrix, LevelReport]:
    """Refine ``world`` at one level: L-BFGS, one unit of a parameter moving the outer voxels by about one voxel of the level."""
    loss = LinearLoss(stage, level, images, comm)
    report = LevelReport(stage.name, level.scale, level.fixed.shape)
    if loss.perfect(world):
        report.losses, report.stopped = [loss.value(world)[0]], "at rest"
        return world, report
    start, lead = time.perf_counter(), Lead(loss, comm)
    world = lead.follow() if comm.rank else lead.done(_minimise(stage, level, lead, world, report, watch))
    report.seconds = time.perf_counter() - start
    return world, report


def _minimise(stage: Linear, level: Level, loss: Lead, world: Matrix, report: LevelReport, watch: Watch) -> Matrix:
    """The best world matrix that L-BFGS came by."""
    grid = level.fixed
    radius = float(np.linalg.norm(grid.extent)) / 4
    model = LinearModel(cast("LinearKind", stage.name), grid.center, radius, world)
    unit = float(np.mean(grid.spacing))
    best: tuple[float, NDArray[np.float64]] = (np.inf, np.zeros(model.size))

    def evaluate(q: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        value, slope = loss(model.matrix(q * unit))
        best = min(best, (value, q.copy()), key=lambda pair: pair[0])
        return value, model.apply_jacobian_transpose(q * unit, slope) * unit

    options: Any = {"maxiter": level.iterations, "maxcor": 12, "maxls": 12, "gtol": 1e-9, "ftol": 1e-9}
    plateau = Plateau(stage.tolerance, stage.window)

    def note(q: NDArray[np.float64]) -> None:
        report.losses.append(best[0])
        watch(Progress(stage.name, level.scale, len(report.losses), level.iterations, best[0]))
        if watch.asked() >= STOP:
            loss.halt()
            raise Halted
        if plateau.reached(report.losses):
            raise _Plateau

    try:
        minimize(evaluate, best[1], jac=True, method="L-BFGS-B", callback=cast("Any", note), options=options)
    except _Plateau:
        report.stopped = "plateau"
    return model.matrix(best[1] * unit)

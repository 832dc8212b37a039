"""Rigid, similarity and affine stages: a quasi-Newton method on a few parameters, level by level (method, section 4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from daskreg.comm import Communicator
from daskreg.config import Affine, Linear
from daskreg.engine.filling import NO_FILLING, Filling, holds, leave_out_beside
from daskreg.engine.halo import Block, Movement, wait_all
from daskreg.engine.images import Image
from daskreg.engine.reach import Reach, SamplingMap, affine_reach
from daskreg.engine.report import NEXT, STOP, LevelReport, Progress, Watch
from daskreg.engine.residency import make_sampler
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.grid import Grid
from daskreg.kernels.device import host, module_of
from daskreg.kernels.sampling.cpu import CENTERS, EVERYWHERE, EXTENT
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level
from daskreg.similarity.base import Samples, Similarity
from daskreg.transforms.linear import (
    LinearKind,
    LinearModel,
    index_gradient_by_plane,
    transform_points,
    translation,
    world_gradient,
)
from daskreg.transforms.strain import Stiffness

Matrix = NDArray[np.float64]
Array = NDArray[np.float32]
HOLD, EVALUATE, FINISHED, STOPPED = 2.0, 1.0, 0.0, -1.0  # what rank 0 tells the others to do with the matrix it sends
MINIMUM_OVERLAP = 0.02  # part of the fixed image that must be inside the moving one
KEPT_OVERLAP = 0.5  # part of the voxels compared at the start of a level that must still be comparable later
UNIT = 1024  # in which weights are added up: integers, whose sum is the same on all ranks
PROBED = 2  # voxels of the moving image: a resampling may have mixed the outermost one with filling, an interpolation the next
SETTLED = 0.1  # voxels: the voxels compared are chosen afresh until no corner moves further than this


class _Converged(Exception):
    pass


class Halted(Exception):
    """All ranks were asked to stop, and do."""


def domain_of(similarity: Similarity, level: Level) -> int:
    """Where samples are known: of a few planes hardly any two would lie between the centres of the outermost ones."""
    thinnest, fixed = min(level.moving.shape), min(level.fixed.shape)
    thin = (thinnest == 2 and fixed > 1) or (thinnest == 3 and fixed > 3)
    return EXTENT if similarity.differences and thin else CENTERS


class LinearLoss:
    """Loss and gradient of one level as a function of a world matrix; all ranks call it with the same matrix.

    Compares the voxels that the matrix maps into the domain, or those that ``hold`` chose.

    filling: what is left out of either image
    """

    def __init__(
        self, stage: Linear, level: Level, images: tuple[Image, Image], comm: Communicator, filling: Filling = NO_FILLING
    ) -> None:
        self.level, self.comm, self.filling, self.last = level, comm, filling, level.scale == stage.scales[-1]
        fixed, moving = images
        self.similarity: Similarity = stage.similarity.build(fixed.device.kind)
        self.domain = domain_of(self.similarity, level)
        self.block = Block(level.fixed.shape, level.partition, comm.rank, level.halo, fixed.device)
        self.fixed, self.mask = fixed.gather_level(level.fixed_factors, self.block.around(self.block.halo), comm)
        self.sampler = make_sampler(level.residency, moving, level.moving_factors, level.shards, comm)
        self.weights = Weights(self.mask, self.sampler.masked, self.block)
        self.moved = self.block.scalar()
        self.outside: Array | None = None  # NaN where a held voxel does not count, else 0
        empty = self.block.device.xp.empty
        self.scratch = self.block.vector() if stage.similarity.scratch else empty((3, 0, 0, 0), np.float32)
        self.gradient = self.block.vector() if self.sampler.stores_gradient else None
        self.window_halo = Movement(comm, self.block.partition.slabs, self.block.around(self.similarity.reach))

    def hold(self, world: Matrix) -> float:
        """Compare from now on the voxels that lie in the domain at ``world``, with their weights there; returns N.

        The mean is then over the same voxels wherever the matrix goes, and its gradient has no part from voxels that enter or
        leave (method, section 4). Beyond its faces the moving image counts as constant. Voxels beside filling, which are partly
        that after an interpolation, and their neighbours where the similarity reads these, are left out too.
        """
        self.outside = None
        self.match(world)
        self.outside = outside = self.moved - self.moved  # 0, and NaN out of the domain
        outside[~module_of(self.moved).isfinite(self.moved)] = np.nan
        if self.filling != NO_FILLING:
            self._leave_out_mixed(outside, world)
            self.match(world)
        return self.similarity.value(self._total())[1]

    @property
    def mixed(self) -> bool:
        """Whether it reads neighbours of voxels, which may be beside filling."""
        return self.filling != NO_FILLING and self.similarity.reach > 0

    def probes(self, world: Matrix) -> list[Matrix]:
        """Maps to PROBED voxels of the moving level on both sides of where a matrix leads, along each axis: filling found there
        is beside, if it is not thinner than a voxel. None where the moving image has no filling, and on all levels but a stage's
        last: on coarser ones too little would be left. A similarity of edges needs it on all, as filling makes the highest ones.
        """
        if self.filling.moving is None or not (self.last or self.similarity.differences):
            return []
        moving, axes = self.level.moving, np.eye(3)[[n > 1 for n in self.level.moving.shape]]
        steps = [distance * axis for axis in axes for distance in (-PROBED, PROBED)]
        return [moving.index_to_world @ translation(step) @ moving.world_to_index @ world for step in steps]

    def _leave_out_mixed(self, outside: Array, world: Matrix) -> None:
        for probe in self.probes(world):
            self._sample(probe, None, EVERYWHERE)
            self._exchange(None)
            outside[holds(self.moved, self.filling.moving)] = np.nan
        if self.mixed:
            leave_out_beside(outside, self.block.inner)

    def match(self, world: Matrix) -> NDArray[np.generic] | None:
        """Sample the domain at ``world``, and adapt the similarity to it; the sums it was matched by, None where it is not."""
        self.sample(world)
        self._exchange(self.weights.moving)
        if not self.similarity.matched:
            return None
        total = add_up(self.similarity.moments(self._samples()), self.comm, self.block.partition)
        self.similarity.match(total)
        return total

    def sample(self, world: Matrix) -> SamplingMap:
        """Fill moved, and the weights unless they are held."""
        if self.outside is None:
            mapping = self._sample(world, self.weights.moving, self.domain)
            self.weights.combine()
            return mapping
        mapping = self._sample(world, None, EVERYWHERE)
        self.moved += self.outside
        return mapping

    def _sample(self, world: Matrix, weight: Array | None, domain: int) -> SamplingMap:
        mapping = SamplingMap.of(self.block.first, world, self.level.fixed, self.level.moving)
        partition = self.block.partition
        needs = affine_reach(mapping, partition, self.block.shape).within(self.level.moving.shape[0]).needs
        self.sampler.prepare(Reach.of_slabs(partition, needs))  # a ring stores the gradient of all planes, for ``sums``
        self.sampler.sample(self.block.box(), mapping, None, self.moved, weight, self.gradient, domain)
        if domain != EVERYWHERE:
            own = self.block.inner  # the planes around them are not sampled here
            self.filling.leave_out(self.fixed[own], self.moved[own])
        return mapping

    def _exchange(self, weight: Array | None) -> None:
        """The planes of moved, and of its weights, that windows reach and neighbours have."""
        if self.similarity.reach:
            arrays = [self.moved] if weight is None else [self.moved, weight]
            wait_all(self.window_halo.start(*((a, self.block.first) for a in arrays)))

    def _total(self) -> NDArray[np.generic]:
        return add_up(self.similarity.partial(self._samples()), self.comm, self.block.partition)

    def value(self, world: Matrix) -> tuple[float, float, NDArray[np.generic], SamplingMap]:
        """Loss, N, the sums over all ranks and the sampling map; moved is then ready for the gradient."""
        mapping = self.sample(world)
        self._exchange(self.weights.moving if self.outside is None else None)
        total = self._total()
        loss, n = self.similarity.value(total)
        return loss, n, total, mapping

    def shared(self, world: Matrix) -> float:
        """The sum of the weights of the voxels that a matrix maps into the domain, over all ranks, in parts of 1 / UNIT."""
        self.sample(world)
        weight = seen_weight(self.moved, self.weights.array, self.block.inner)
        return float(self.comm.sum_counts(np.array([weight], np.int64))[0]) / UNIT

    def perfect(self, world: Matrix) -> bool:
        """Whether moved equals the fixed image already: no other map is better, whatever a loss gains by moving voxels
        outside.
        """
        self.sample(world)
        own = self.block.inner
        differs = np.array([1.0 - float(np.array_equal(self.moved[own], self.fixed[own]))])
        return bool(self.comm.max(differs)[0] == 0)

    def __call__(self, world: Matrix) -> tuple[float, NDArray[np.float64]]:
        """Loss and dC/dW (4, 4)."""
        loss, n, total, mapping = self.value(world)
        self.similarity.finish(self._samples(), total)
        rows = self.sampler.sums(self.block.box(), mapping, self.moved, self.gradient)
        planes = index_gradient_by_plane(host(rows), self.block.own.start)
        sums = self.comm.sum_planes(planes, self.block.partition.lengths).reshape(3, 4) / max(n, 1e-30)
        return loss, world_gradient(np.vstack([sums, np.zeros(4)]), self.level.fixed, self.level.moving)

    def _samples(self) -> Samples:
        return Samples(self.block.box(), self.block.first, self.fixed, self.weights.array, self.moved, self.scratch)


def seen_weight(moved: Any, weights: Any, own: slice) -> int:
    """The sum over the own planes, in units of 1 / UNIT: an integer, the same for every number of ranks."""
    xp = module_of(moved)
    seen = xp.isfinite(moved[own])
    parts = UNIT * seen if weights.size == 0 else xp.where(seen, xp.floor(UNIT * weights[own]), 0)
    return int(parts.sum(dtype=np.float64))


class Coordinator:
    """Rank 0 chooses the next matrix, the others evaluate it too: two processors may round a quasi-Newton step differently."""

    def __init__(self, loss: LinearLoss, comm: Communicator, stiffness: float = 0.0, start: Matrix | None = None) -> None:
        """stiffness, start: of ``Stiffness``, whose part rank 0 adds alone."""
        self.loss, self.comm = loss, comm
        self.evaluate = Stiffness(loss, start, stiffness) if stiffness and start is not None else loss

    def __call__(self, world: Matrix) -> tuple[float, NDArray[np.float64]]:
        """On rank 0: loss and gradient, by all ranks."""
        self._broadcast(world, EVALUATE)
        return self.evaluate(world)

    def hold(self, world: Matrix) -> float:
        """On rank 0: ``LinearLoss.hold`` on all ranks."""
        self._broadcast(world, HOLD)
        return self.loss.hold(world)

    def finish(self, world: Matrix) -> Matrix:
        """On rank 0: send the others the result."""
        return self._broadcast(world, FINISHED)

    def stop(self) -> None:
        """On rank 0: tell the others to stop."""
        self._broadcast(np.eye(4), STOPPED)

    def follow(self) -> Matrix:
        """On the other ranks: evaluate what rank 0 sends until it has finished. Raises Halted."""
        while True:
            message = self.comm.broadcast(np.zeros(17))
            if message[16] == STOPPED:
                raise Halted
            world = np.array(message[:16]).reshape(4, 4)
            if message[16] == FINISHED:
                return world
            if message[16] == HOLD:
                self.loss.hold(world)
            else:
                self.loss(world)

    def _broadcast(self, world: Matrix, command: float) -> Matrix:
        return np.array(self.comm.broadcast(np.concatenate([world.ravel(), [command]]))[:16]).reshape(4, 4)


def run_linear(
    stage: Linear,
    level: Level,
    images: tuple[Image, Image],
    world: Matrix,
    comm: Communicator,
    watch: Watch,
    begun: Matrix | None = None,
    make_loss: Callable[..., LinearLoss] = LinearLoss,
) -> tuple[Matrix, LevelReport]:
    """Refine ``world`` at one level: L-BFGS, one unit of a parameter moving the outer voxels by about one voxel of the level.

    begun: the map that the stage began with, from which a stiff one departs only for a gain;  make_loss: of the level. Raises
    Halted where the watch asked for it.
    """
    loss = make_loss(stage, level, images, comm)
    report = LevelReport(stage.name, level.scale, level.fixed.shape)
    if loss.perfect(world):
        report.losses, report.stopped = [loss.value(world)[0]], "at rest"
        return world, report
    stiffness = stage.stiffness if isinstance(stage, Affine) else 0.0
    start, coordinator = time.perf_counter(), Coordinator(loss, comm, stiffness, world if begun is None else begun)
    found = coordinator.follow() if comm.rank else coordinator.finish(_minimise(stage, level, coordinator, world, report, watch))
    report.seconds = time.perf_counter() - start
    return found, report


def _minimise(stage: Linear, level: Level, loss: Coordinator, world: Matrix, report: LevelReport, watch: Watch) -> Matrix:
    """The best world matrix: L-BFGS on held voxels, which are chosen afresh until they stay.

    Stops where fewer voxels are left to compare than KEPT_OVERLAP of those at the start, at the last matrix before.
    """
    first = count = loss.hold(world)
    if first < MINIMUM_OVERLAP * level.fixed.size and loss.loss.mask is None:
        report.stopped = "no overlap"
        return world
    while level.iterations:
        found = _minimise_held(stage, level, loss, world, report, watch)
        moved, done = _corner_distance(level.fixed, world, found), len(report.losses) >= level.iterations
        if moved > SETTLED:
            count = loss.hold(found)
        if count < KEPT_OVERLAP * first:
            report.stopped = "overlap"
            return world
        world = found
        if done or moved <= SETTLED or report.stopped == "skipped":
            break
    return world


def _corner_distance(grid: Grid, a: Matrix, b: Matrix) -> float:
    """The largest distance between the images of a corner of a grid under two world maps, in its smallest voxels."""
    ends = np.stack(np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    corners = grid.to_world(ends)
    apart = transform_points(a, corners) - transform_points(b, corners)
    return float(np.linalg.norm(apart, axis=1).max()) / min(grid.spacing)


def _minimise_held(stage: Linear, level: Level, loss: Coordinator, world: Matrix, report: LevelReport, watch: Watch) -> Matrix:
    """The best world matrix that L-BFGS evaluated on the held voxels."""
    grid = level.fixed
    radius = float(np.linalg.norm(grid.extent)) / 4
    model = LinearModel(cast("LinearKind", stage.name), grid.center, radius, world)
    unit = float(np.mean(grid.spacing))
    best: tuple[float, NDArray[np.float64]] = (np.inf, np.zeros(model.size))

    def evaluate(q: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        if watch.stopping():  # a line search evaluates many times in one iteration
            loss.stop()
            raise Halted
        value, gradient = loss(model.matrix(q * unit))
        best = min(best, (value, q.copy()), key=lambda pair: pair[0])
        return value, model.apply_jacobian_transpose(q * unit, gradient) * unit

    left = level.iterations - len(report.losses)
    options: Any = {"maxiter": left, "maxcor": 12, "maxls": 12, "gtol": 1e-9, "ftol": 1e-9}
    record = _recorder(stage, level, loss, report, watch, lambda: best[0])
    try:
        minimize(evaluate, best[1], jac=True, method="L-BFGS-B", callback=cast("Any", record), options=options)
    except _Converged as end:
        report.stopped = str(end)
    return model.matrix(best[1] * unit)


def _recorder(
    stage: Linear, level: Level, loss: Coordinator, report: LevelReport, watch: Watch, best: Callable[[], float]
) -> Callable[[NDArray[np.float64]], None]:
    """What is called after every iteration: reports it, and ends the run of L-BFGS by an exception."""
    plateau, before = Plateau(stage.tolerance, stage.window), len(report.losses)

    def record(q: NDArray[np.float64]) -> None:
        report.losses.append(best())
        watch(Progress(stage.name, level.scale, len(report.losses), level.iterations, report.losses[-1]))
        asked = watch.asked()
        if asked >= STOP:
            loss.stop()
            raise Halted
        if asked == NEXT:
            raise _Converged("skipped")
        if plateau.reached(report.losses[before:]):
            raise _Converged("plateau")

    return record

"""The deformable stage at one level on one rank (method, section 5): one loop for every similarity, optimizer, model and
device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending
from daskreg.config import Deformable
from daskreg.engine.backend import Backend, CpuBackend, Iteration
from daskreg.engine.evaluation import LossEvaluation
from daskreg.engine.groups import ScaledByGroup, is_end
from daskreg.engine.halo import Block, Movement, wait_all
from daskreg.engine.images import Image
from daskreg.engine.reach import ReachMonitor, SamplingMap
from daskreg.engine.report import NEXT, LevelReport, Progress, Trace, Watch
from daskreg.engine.residency import make_sampler
from daskreg.engine.smoothing import Smoother
from daskreg.engine.state import StateStore, is_mixed
from daskreg.errors import Diverged
from daskreg.models.base import BlockLayout, TransformModel
from daskreg.optimizers.base import Filter
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level

Save = Callable[[StateStore, LevelReport, float], None]


class Loop:
    """One level of the deformable stage on one rank."""

    def __init__(
        self,
        stage: Deformable,
        level: Level,
        images: tuple[Image, Image],
        world: NDArray[np.float64],
        comm: Communicator,
        trace: Trace | None = None,
    ) -> None:
        self.stage, self.level, self.comm, self.trace = stage, level, comm, trace
        fixed, moving = images
        self.block = b = Block(level.fixed.shape, level.partition, comm.rank, level.halo, fixed.device)
        mapping = SamplingMap.of(b.first, world, level.fixed, level.moving)
        half = is_mixed(stage, b.device)
        voxels, mask = fixed.gather_level(level.fixed_factors, b.around(b.halo), comm, half)
        self.gradient_filter = Smoother(b, stage.smooth_gradient)
        self.direction_reach = stage.model.direction_reach(stage.smooth_warp)
        gradient_reach = self.gradient_filter.reach + self.direction_reach
        self.sampler = make_sampler(
            level.residency, moving, level.moving_factors, level.shards, comm, trace, half, sigmas=level.moving_sigmas
        )
        similarity = stage.similarity.build(b.device.kind)
        self.evaluation = LossEvaluation(similarity, b, voxels, mask, self.sampler, mapping, comm, gradient_reach)
        self.model = self._model()
        self.gradient_halo = Movement(comm, b.partition.slabs, b.around(gradient_reach))
        self._displacement(mapping)

    def _model(self) -> TransformModel:
        s, b = self.stage, self.block
        layout = BlockLayout(b.box(), b.box(self.direction_reach), b.first, b.shape[0], len(b.held), Smoother(b, s.smooth_warp),
                             s.maximum_step, shortens=s.iterations_per_sweep > 1)  # fmt: skip
        model: TransformModel = s.model.build(layout, b.device.kind)
        return model

    def _displacement(self, mapping: SamplingMap) -> None:
        """Planes of u from neighbours, and how far u can reach into the moving image."""
        s, b, comm = self.stage, self.block, self.comm
        reach = s.model.reach(s.smooth_warp)
        self.warp_halo = Movement(comm, b.partition.slabs, b.around(reach))
        self.coming: list[Pending] = []  # planes of u on their way: nothing reads them before the update
        whole = comm.size == 1 or self.level.residency == "replicate"  # all of the moving image is held
        self.monitor = None if whole else ReachMonitor(b, mapping, self.level.partition, reach, s.maximum_step, comm)

    # ---------------------------------------------------------------- a level

    def run(self, state: StateStore, watch: Watch, save: Save) -> LevelReport:
        """Iterate until the plateau or the last iteration; ``save`` is called where all ranks have agreed to save.

        Raises Diverged where the loss is no longer finite.
        """
        report = LevelReport("deformable", self.level.scale, self.block.shape, list(state.losses))
        start = time.perf_counter()
        backend = make_backend(self.block, self.comm, watch, report.losses, self.level.iterations)
        backend.trace = self.trace
        judge = Judge(self.stage, self.level, watch, len(report.losses))
        try:
            self.begin(state, backend)
            iteration = partial(self.iteration, state, backend, judge)
            k, reason = iterate(self.level.iterations, iteration, backend, judge, partial(self._save, state, report, save))
            wait_all(self.coming)
            report.losses, report.stopped = backend.losses(k), reason
        finally:
            backend.close()
        judge.observe(report.losses)
        report.seconds += time.perf_counter() - start
        return report

    def begin(self, state: StateStore, backend: Backend) -> None:
        """What every iteration finds done: u of the neighbours under way, the planes in reach known to all, edges matched."""
        similarity, optimizer = self.evaluation.similarity, state.optimizer
        asynchronous = similarity.asynchronous and optimizer.asynchronous
        backend.prepare(optimizer, self.stage.similarity.gradient_scale, similarity.loss_sign, asynchronous)
        self.coming = self.warp_halo.start((state.u, self.block.first))
        if self.monitor is not None:
            self.sampler.prepare(self.monitor.begin(state.u, len(state.losses)))
        self.evaluation.match(state, backend)
        together = self.stage.iterations_per_sweep
        self.group = ScaledByGroup(backend, together, state.longest) if together > 1 else None

    # ---------------------------------------------------------------- an iteration

    def iteration(self, state: StateStore, backend: Backend, judge: Judge, t: int) -> str | None:
        """Iteration t = 1, 2, ..; why the level ends with it, None while it goes on."""
        self.evaluation.gradient(state, backend)  # step 1
        if not backend.lag and judge.ends(backend.losses(t), t):
            return "plateau"
        self._receive_halos(state)
        reach = backend.later(self.monitor.measure(state.u)) if self.monitor is not None and self.monitor.due(t) else None
        step = StepView(self, state, backend)
        state.optimizer.step(step)  # steps 2 and 3
        agreed = backend.agree(t)  # step 4
        if t == 1 and float(backend.longest[0]) < state.optimizer.at_rest**2:
            backend.settle(agreed)
            return "at rest"
        if self.group is not None:
            self.group.hold()
        event = self.model.update(state, state.optimizer.stored_direction(step), self.group or backend)  # steps 5 and 6
        backend.settle(agreed)
        self.coming = self.warp_halo.start((state.u, self.block.first), after=event)
        if reach is not None and self.monitor is not None and self.sampler.prepare(self.monitor.combine(reach())):
            backend.moving_changed()
        return None

    def _save(self, state: StateStore, report: LevelReport, save: Save, losses: list[float], asked: float) -> None:
        report.losses = losses
        if self.group is not None and losses:
            state.longest = self.group.next_longest(len(losses))
        save(state, report, asked)

    def _receive_halos(self, state: StateStore) -> None:
        start = time.perf_counter()
        wait_all(self.gradient_halo.start((state.gradient, self.block.first), after=self.evaluation.gradient_event))
        wait_all(self.coming)
        if self.trace is not None and self.block.device.kind == "cuda":
            self.trace("host receives halos", start, time.perf_counter())


def iterate(
    iterations: int, iteration: Iteration, backend: Backend, judge: Judge, save: Callable[[list[float], float], None]
) -> tuple[int, str]:
    """All iterations of a level: how many have a loss, and why they ended; ``save``: given the losses and what was asked for."""
    k = backend.done
    while k < iterations:
        known = backend.known(k)
        if known is not None:
            judge.observe(known)
            if backend.asked == NEXT:
                return k, "skipped"
            if backend.asked:
                save(backend.losses(k), backend.asked)
            if judge.converged(known, k):
                return k, "plateau"
        count, reason = backend.advance(iteration, k)
        k += count
        if reason:
            return k, reason
    return k, "iterations"


class StepView:
    """What an optimizer sees of an iteration: ``optimizers.base.Step``."""

    def __init__(self, loop: Loop, state: StateStore, backend: Backend) -> None:
        b = loop.block
        self.reach, self.box, self.first, self.planes = loop.direction_reach, b.box(loop.direction_reach), b.first, len(b.held)
        self.filter: Filter = loop.gradient_filter
        self.run, self.idle = backend.run, not len(b.own)
        self.store, self.gradient, self.direction, self.state = state, state.gradient, state.d, state.optimizer_state
        self.coefficients, self.clock, self.longest = backend.coefficients, backend.clock, backend.longest

    def smoothed(self) -> Any:
        """See ``optimizers.base.Step``."""
        return self.store.smoothed(self.filter, self.reach)


class Judge:
    """Reports iterations, and ends a level that diverges or has converged."""

    def __init__(self, stage: Deformable, level: Level, watch: Watch, reported: int) -> None:
        self.level, self.watch, self.reported = level, watch, reported
        self.plateau, self.together = Plateau(stage.tolerance, stage.window), stage.iterations_per_sweep

    def observe(self, losses: list[float]) -> None:
        """Report the losses that have not been reported. Raises Diverged where one is not finite."""
        for k in range(self.reported, len(losses)):
            self.watch(Progress("deformable", self.level.scale, k + 1, self.level.iterations, losses[k]))
            if not math.isfinite(losses[k]):
                raise Diverged(f"the loss became {losses[k]} at scale {self.level.scale}, iteration {k}; use a smaller step.")
        self.reported = max(self.reported, len(losses))

    def converged(self, losses: list[float], k: int) -> bool:
        """Whether the loss has reached its plateau, where a group of iterations ends with the k-th, k = 1, 2, .."""
        return is_end(k, self.together, self.level.iterations) and self.plateau.reached(losses)

    def ends(self, losses: list[float], k: int) -> bool:
        """Both."""
        self.observe(losses)
        return self.converged(losses, k)


def make_backend(block: Block, comm: Communicator, watch: Watch, losses: list[float], iterations: int) -> Backend:
    """For the block's device."""
    if block.device.kind == "cpu":
        return CpuBackend(block, comm, watch, losses, iterations)
    from daskreg.engine.backend_cuda import CudaBackend

    return CudaBackend(block, comm, watch, losses, iterations)

"""The deformable stage at one level on one rank with its fields out of the device's memory (method, section 5).

``engine.loop`` runs an iteration as gradient, step, composition over whole fields. Here the iteration begins with the composition
that the last one left, so that a single pass along z does all of it, a slab after the other: the arithmetic of a voxel and its
order are the same, and so are the bits of the result. Iterations of a group (``engine.groups``) share a pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable
from daskreg.engine.backend import LAG, Backend, CpuBackend, Iteration
from daskreg.engine.groups import until_end
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.loop import Judge, Save, iterate
from daskreg.engine.reach import Reach, ReachMonitor, SamplingMap
from daskreg.engine.report import STOP, LevelReport, Trace, Watch
from daskreg.engine.residency import make_sampler
from daskreg.engine.sampler import Resident
from daskreg.engine.streamed import Streamed
from daskreg.engine.sums import add_up_slabs
from daskreg.engine.sweep.buffers import EMPTY
from daskreg.engine.sweep.composition import Composition
from daskreg.engine.sweep.evaluation import SlabEvaluation
from daskreg.engine.sweep.pipeline import Pipeline, SweptIteration
from daskreg.engine.sweep.slabs import FIXED, MASK, SlabBuffers
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.step import step_slab
from daskreg.grid import Span
from daskreg.kernels.device import host
from daskreg.planning import Level
from daskreg.planning.slabs import HEIGHTS, Slab, total_reach
from daskreg.similarity.base import Samples

Measure = Callable[[Samples], NDArray[np.generic]]
MOSTLY = 0.5  # part of a sweep: from there on a disk is called slow
LEAST_WAIT = 0.5  # seconds of waiting a sweep


class SweepBackend(CpuBackend):
    """Judges losses when the loop of whole fields does on this device: a level ends at the same iteration."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lag = LAG if self.block.device.kind == "cuda" else 0

    def advance(self, iteration: Iteration, k: int) -> tuple[int, str | None]:
        """As many as one sweep does."""
        reason = iteration(k + 1)
        return len(self.past) - k, reason

    def known(self, k: int) -> list[float] | None:
        """On a GPU every other iteration, all but the last six."""
        if not self.lag:
            return self.past
        return None if k % 2 else self.past[: max(k - self.lag, 0)]


class SweepLoop(Composition):
    """One level of the deformable stage on one rank, its fields in a ``SweptState``."""

    def __init__(
        self,
        stage: Deformable,
        level: Level,
        images: tuple[Image, Image],
        world: NDArray[np.float64],
        comm: Communicator,
        trace: Trace | None = None,
    ) -> None:
        fixed, moving = images
        block = Block(level.fixed.shape, level.partition, comm.rank, level.halo, fixed.device)
        super().__init__(stage, block, level.slab, comm, stage.iterations_per_sweep)
        self.level, b, whole, self.halo = level, block, block.partition.whole, total_reach(stage)
        wanted = [s.grow(self.halo) & whole for s in b.partition.slabs]
        kept = level.images != "device"
        opened = fixed.open(level.fixed_factors, wanted, comm, self.half, kept)
        self.still = {name: kept for name, kept in ((FIXED, opened.voxels), (MASK, opened.mask)) if kept is not None}
        self.mapping = SamplingMap.of(0, world, level.fixed, level.moving)
        where = level.residency, moving, level.moving_factors, level.shards
        sampler = make_sampler(*where, comm, trace, self.half, kept, level.window, level.moving_sigmas)
        assert isinstance(sampler, Resident), "a ring has no slabs"
        self.sampler, self.masked = sampler, sampler.masked
        self.monitor = self._monitor(comm)
        self.similarity = stage.similarity.build(b.device.kind)

    def _monitor(self, comm: Communicator) -> ReachMonitor | None:
        """How far u can reach into the moving image, where not all of it is held."""
        s, b, level = self.stage, self.block, self.level
        if not isinstance(self.sampler, Streamed) and (comm.size == 1 or level.residency == "replicate"):
            return None
        return ReachMonitor(b, self.mapping, level.partition, s.model.reach(s.smooth_warp), s.maximum_step, comm)

    # ---------------------------------------------------------------- a level

    def run(self, state: SweptState, watch: Watch, save: Save) -> LevelReport:
        """As ``engine.loop.Loop.run``."""
        report = LevelReport("deformable", self.level.scale, self.block.shape, list(state.losses))
        start = time.perf_counter()
        self.watch, self.reported = watch, False  # of a slow disk
        backend = SweepBackend(self.block, self.comm, watch, report.losses, self.level.iterations)
        judge = Judge(self.stage, self.level, watch, len(report.losses))
        self.pipeline = Pipeline(self, state)
        try:
            self.begin(state, backend)
            iteration = partial(self.iteration, state, backend, judge)
            k, reason = iterate(self.level.iterations, iteration, backend, judge, partial(self._save, state, report, save))
            self.finish_step(state)
            report.losses, report.stopped = backend.losses(k), reason
        finally:
            self.pipeline.close()
            del self.pipeline
            self.block.device.record_peak()
        judge.observe(report.losses)
        report.seconds += time.perf_counter() - start
        return report

    def begin(self, state: SweptState, backend: Backend) -> None:
        """What every iteration finds done."""
        backend.prepare(state.optimizer, self.stage.similarity.gradient_scale, self.similarity.loss_sign, False)
        state.exchange(self.comm)
        self.clock, self.backend = backend.clock, backend
        if self.monitor is not None:
            self.monitor.since = len(state.losses)
            self._prepare(self.monitor.combine(self._measured(state)), state)
        self._match(state, backend)

    def _match(self, state: SweptState, backend: Backend) -> None:
        """As ``LossEvaluation.match``."""
        if not self.similarity.matched_levels:
            return
        if not state.matched:
            state.matched = [float(v) for v in self._counted(state, False, self.similarity.moments)[0].total()]
        self.similarity.match(np.array(state.matched))

    def _prepare(self, reach: Reach, state: SweptState) -> None:
        """Be ready to sample the planes in reach; with lower slabs where too many planes of the moving image are."""
        reach = reach.beyond(self.halo)
        if isinstance(self.sampler, Streamed) and self.level.window is not None:
            self._lower_slabs(self.sampler, self.level.window, reach, state)
        self.sampler.prepare(reach)

    def _lower_slabs(self, sampler: Streamed, planned: int, reach: Reach, state: SweptState) -> None:
        height, level, least = self.height, self.level, HEIGHTS[0]

        def allowed(height: int) -> int:
            return planned + level.traded * (level.slab - height)

        def read(height: int) -> int:
            found = (reach.read_by(step.sampled) & level.shards.whole for step in self.scheduled(height, self.most))
            return max(map(len, found), default=0)

        while height > least and read(height) > allowed(height):
            height -= 1
        sampler.most = allowed(height)
        if height < self.height:
            self.pipeline.close()
            self.schedule(height)
            del self.pipeline  # its memory goes before that of the new one comes
            self.pipeline = Pipeline(self, state)

    def _measured(self, state: SweptState) -> Any:
        """``ReachMonitor.measure`` of u as it is stored."""
        parts: list[Any] = []
        for _, only, slab in self.pipeline.sweep(self.pipeline.iterations([None], self.clock)):
            only.buffers.use_stored_u(slab)
            parts.append(host(self._reach(only.buffers, slab)))
        self.pipeline.finish()
        return _joined(parts)

    def _reach(self, b: SlabBuffers, slab: Slab) -> Any:
        assert self.monitor is not None
        return self.monitor.measure_planes(b.box(slab.composed & self.block.own), b.held.start, b.u.array)

    def _save(self, state: SweptState, report: LevelReport, save: Any, losses: list[float], asked: float) -> None:
        """Where the fields are their own checkpoint the step is left to whoever goes on with it."""
        if not state.kept or asked >= STOP:
            self.finish_step(state)
        report.losses = losses
        save(state, report, asked)

    # ---------------------------------------------------------------- a sweep

    def iteration(self, state: SweptState, backend: Backend, judge: Judge, t: int) -> str | None:
        """Iteration t = 1, 2, .. and those of its group that follow; why the level ends with them, None while it goes on."""
        count = until_end(t - 1, self.most, self.level.iterations)
        last, lengths = t + count - 1, [state.length, *[state.longest] * (count - 1)]
        due = self.monitor is not None and self.monitor.due_in_group(last, self.most)
        with self._watched(t):
            losses, reach = self._pass(state, lengths, due)
        for loss in losses:
            backend.record(loss)
        state.length = None
        if not backend.lag and judge.ends(backend.losses(last), last):
            return "plateau"
        backend.longest[0] = host(self.longest)[0]
        agreed = backend.agree(last)
        length = float(backend.longest[0])
        backend.settle(agreed)
        backend.clock[0] += count - 1
        if t == 1 and length < state.optimizer.at_rest**2:
            return "at rest"
        self._scale_steps(state, t, length)
        state.exchange(self.comm)
        if due and self.monitor is not None:
            self._prepare(self.monitor.combine(_joined(reach)), state)
        return None

    def _scale_steps(self, state: SweptState, t: int, length: float) -> None:
        """By the longest direction of a sweep's last iteration, or by that before the group; t: the sweep's first iteration."""
        state.length = length if t == 1 or self.most == 1 else state.longest
        state.longest = length if self.most > 1 else None

    @contextmanager
    def _watched(self, t: int) -> Iterator[None]:
        """Tell, once, where a pass waits for the disk most of its time; not of the first, for which kernels are compiled."""
        start, transfers = time.perf_counter(), self.pipeline.transfers
        waited, moved = (transfers.waited, transfers.moved) if transfers is not None else (0.0, 0)
        yield
        if transfers is None or self.reported or t == 1 or "disk" not in (self.level.state, self.level.images):
            return
        seconds, waited, moved = time.perf_counter() - start, transfers.waited - waited, transfers.moved - moved
        if waited > max(MOSTLY * seconds, LEAST_WAIT):
            self.reported = True
            self.watch.slow_disk(waited, seconds, moved / seconds)

    def _pass(self, state: SweptState, lengths: Sequence[float | None], due: bool) -> tuple[list[float], list[Any]]:
        """Compose, compare and step on every slab; the losses, and the parts of the reach, where that is due.

        lengths: see ``Pipeline.iterations``
        """
        iterations, reach, loss = self.pipeline.iterations(lengths, self.clock), list[Any](), None
        differentiate = self.similarity.evaluate
        if not self.similarity.separable:
            sums, reach = self._counted(state, due)
            between, loss = sums.between()
            iterations = self.pipeline.iterations([state.length], self.clock)
            differentiate = lambda on: self.similarity.differentiate(on, between)  # noqa: E731
            due = False
        several = [Sums(self, one.buffers) for one in iterations]
        for number, one, slab in self.pipeline.sweep(iterations):
            self._visit(state, number, one, slab, len(iterations))
            if due and one is iterations[-1]:
                self._measure_into(reach, one, slab)
            self._compare(one.buffers, slab, partial(several[iterations.index(one)].evaluate, differentiate))
            step_slab(self, state.optimizer, one, slab)
        self.pipeline.finish()
        self.longest = iterations[-1].longest
        return [sums.loss() if loss is None else loss for sums in several], reach

    def _counted(self, state: SweptState, due: bool, measure: Measure | None = None) -> tuple[Sums, list[Any]]:
        """Compose and count on every slab, before another pass; and the parts of the reach, where that is due."""
        (only,), reach = self.pipeline.iterations([state.length], self.clock), list[Any]()
        sums = Sums(self, only.buffers, measure)
        for number, one, slab in self.pipeline.sweep([only]):
            self._visit(state, number, one, slab, 1)
            if due:
                self._measure_into(reach, one, slab)
            sums.count(slab)
        self.pipeline.finish()
        state.length = None
        state.exchange(self.comm, displacement=True)
        return sums, reach

    def _measure_into(self, reach: list[Any], one: SweptIteration, slab: Slab) -> None:
        if len(slab.composed & self.block.own):
            reach.append(host(self._reach(one.buffers, slab)))

    def _visit(self, state: SweptState, number: int, one: SweptIteration, slab: Slab, iterations: int) -> None:
        """A slab's new displacement and its samples;  number: of the step in a sweep of so many iterations."""
        self.compose(state, one, slab)
        step, *later = self.steps[iterations - 1][number : number + 2]
        if slab is next(filter(None, step.slabs)):  # for all iterations at once
            self.sampler.bring(step.sampled, later[0].sampled if later else EMPTY)
        self._sample(one.buffers, slab)

    def _sample(self, b: SlabBuffers, slab: Slab) -> None:
        planes = slab.composed
        seen = None if b.weight is None else b.weight.array
        self.sampler.sample(b.box(planes), self.mapping._replace(first=b.held.start), b.u.array, b.moved.array, seen, None)
        mask = b.still.planes(MASK, planes)
        if b.weight is not None and mask is not None:
            b.weight.part(planes)[...] *= mask
        b.sampled(planes)

    def _compare(self, b: SlabBuffers, slab: Slab, evaluate: Any) -> None:
        """On the own planes, whose loss counts, and on those around them, whose gradient is needed."""
        own, planes = self.block.own, slab.compared
        inner = planes & own
        for part in (Span(planes.start, min(planes.stop, own.start)), inner, Span(max(planes.start, own.stop), planes.stop)):
            if len(part):
                evaluate(part, counts=part == inner)
        b.differentiated(planes)


def _joined(parts: list[Any]) -> NDArray[np.float32]:
    """(2, planes) of all slabs; an idle rank has none."""
    return np.concatenate([np.empty((2, 0), np.float32), *parts], axis=1)


class Sums:
    """What a loss is made of, over the slabs of a sweep.

    buffers: of an iteration;  measure: what is summed where slabs are counted, instead of ``Similarity.partial``
    """

    def __init__(self, loop: SweepLoop, buffers: SlabBuffers, measure: Measure | None = None) -> None:
        self.loop, self.buffers, self.parts = loop, buffers, list[NDArray[np.generic]]()
        self.measure = loop.similarity.partial if measure is None else measure
        xp = loop.block.device.xp
        self.totals, self.other, self.value = xp.zeros(2, np.int64), xp.zeros(2, np.int64), xp.zeros(2, np.float64)

    def evaluate(self, similarity: Any, planes: Span, counts: bool) -> None:
        """On some planes;  counts: whether they belong to the loss."""
        on, moved = self.on(planes, counts), self.buffers.moved
        window = Span(planes.stop - self.loop.reaches.window, planes.stop) & moved.held
        kept = moved.part(window).copy()  # dC/dmoved takes the place of values that the next windows read
        similarity(on)
        moved.part(window)[...] = kept
        if counts and on.part is not None:
            self.parts.append(host(on.part))

    def count(self, slab: Slab) -> None:
        """Without a gradient: sums of the own planes that can be compared."""
        own = slab.compared & self.loop.block.own
        self.buffers.differentiated(slab.compared)
        if len(own):
            on = self.on(own, True)
            self.parts.append(host(self.measure(on.samples)))

    def between(self) -> tuple[Any, float]:
        """Of all slabs and ranks."""
        found: tuple[Any, float] = self.loop.similarity.between(self.total(), self.on(Span(0, 0), True))
        return found

    def loss(self) -> float:
        """Of all slabs and ranks; every rank asks for it."""
        sign = self.loop.similarity.loss_sign
        if self.loop.block.device.kind == "cuda" and sign and not self.parts:
            total, count = self.loop.comm.sum_counts(host(self.totals))
            return float(sign * float(total) / max(float(count), 1.0))
        value: float = self.loop.similarity.value(self.total())[0]
        return value

    def on(self, planes: Span, counts: bool) -> SlabEvaluation:
        """What a similarity evaluates."""
        return self.buffers.evaluation(planes, self.totals if counts else self.other, self.value)

    def total(self) -> NDArray[np.generic]:
        """Of all slabs and ranks."""
        if not self.parts:  # an idle rank
            self.parts.append(host(self.measure(self.on(Span(0, 0), True).samples)))
        return add_up_slabs(self.parts, self.loop.comm, self.loop.block.partition)

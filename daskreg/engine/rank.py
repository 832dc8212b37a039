"""One rank's whole run: the stages in order, from images to a transform, from the start or from where an earlier run was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable, Linear, Moments, Search
from daskreg.engine.filling import NO_FILLING, Filling
from daskreg.engine.guard import COARSER, compare, judge_of
from daskreg.engine.halo import Block
from daskreg.engine.identical import in_place
from daskreg.engine.images import Image
from daskreg.engine.initial import run_initial
from daskreg.engine.linear import Halted, run_linear
from daskreg.engine.loop import Loop
from daskreg.engine.masks import require_meeting_masks, require_voxels
from daskreg.engine.planes import Allocate, ArrayPlanes, Planes, allocator, pieces, zero_planes
from daskreg.engine.report import SAVE, STOP, LevelReport, Outcome, Place, Trace, Watch
from daskreg.engine.state import FullResolution, Store, exchange_planes, is_mixed, make_state, refine_piecewise
from daskreg.engine.sweep.linear import make_linear_loss
from daskreg.engine.sweep.loop import SweepLoop
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.upsampled import UpsampledField
from daskreg.errors import Stopped
from daskreg.grid import Grid, Span
from daskreg.planning import SOURCE, Level, Plan
from daskreg.planning.slabs import total_reach
from daskreg.planning.source import source_boxes

Matrix = NDArray[np.float64]
Array = NDArray[np.float32]
STOP_MESSAGE = "the run was asked to stop; its state was kept."


@dataclass
class RunState:
    """Where a run is: what a checkpoint holds beside arrays.

    level: index within the stage of the level to go on with;  losses: of that level so far, in which case the optimizer's fields
    count too;  fields: index (stage, level) of the level that u belongs to, None without one;  before: the map at the start of
    the stage;  matched, longest: see ``engine.state.StateStore``;  seconds: that the run has taken so far, all its parts
    together.
    """

    stage: int = 0
    level: int = 0
    world: list[list[float]] = field(default_factory=lambda: np.eye(4).tolist())
    losses: list[float] = field(default_factory=list)
    fields: tuple[int, int] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    before: list[list[float]] | None = None
    matched: list[float] = field(default_factory=list)
    seconds: float = 0.0
    longest: float | None = None


Read = Callable[[str, Span], Array]  # planes of a field from a checkpoint
StartingDisplacement = Callable[[Grid, Span, Matrix], Array]  # u of a level's planes, voxels, to go with an affine map


class Kept(Protocol):
    """Fields on disk that are their own checkpoint."""

    def allocate(self, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> Planes:
        """Zeros (lead, planes, Y, X), of which nothing is kept yet."""

    def commit(self, state: RunState, length: float | None, own: Span, fields: Mapping[str, Planes]) -> None:
        """Make what was written the checkpoint, on all ranks. Raises OutOfSpace, OutputError."""

    def superseded(self, fields: Mapping[str, Planes]) -> None:
        """A checkpoint elsewhere is further on; this process goes on with these fields."""


# own planes of fields, wherever they are, and the level's shape
Save = Callable[[RunState, Mapping[str, tuple[Span, Planes]], tuple[int, int, int] | None], None]


class Rank:
    """Runs the stages of a plan on one rank; keeps the affine map, the displacement and the reports."""

    def __init__(
        self,
        plan: Plan,
        images: tuple[Image, Image],
        start: Matrix,
        comm: Communicator,
        watch: Watch,
        save: Save | None = None,
        trace: Trace | None = None,
        initial: StartingDisplacement | None = None,
        scratch: Allocate | None = None,
        kept: Kept | None = None,
        spent: float = 0.0,
    ) -> None:
        self.begun = time.perf_counter() - spent  # what the run has taken before this rank was made
        self.scratch, self.kept = scratch, kept
        self.saved = False  # a checkpoint, without which fields that are kept are of no use
        self.plan, self.images, self.comm, self.watch, self.save, self.trace = plan, images, comm, watch, save, trace
        self.world, self.initial = start, initial
        self.at = RunState(world=start.tolist())
        self.store: Store | None = None
        self.reports: list[LevelReport] = []
        if any(is_mixed(stage, images[0].device) for stage in plan.config.stages):
            for image in images:
                image.round()  # once and for all, so that nothing depends on which stages ran in this process

    def resume(self, state: RunState, read: Read) -> None:
        """Continue where a checkpoint was made, on any number of ranks."""
        self.at, self.world, self.saved = state, np.array(state.world), True
        self.reports = [LevelReport(**r) for r in state.reports]
        self._tell_place()
        if state.fields is not None:
            stage, level = self._stage_of(state.fields)
            self._hold_images(stage, level)
            self.store = self._make_store(stage, level)
            self.store.restore(read, state.losses)
            self.store.matched, self.store.longest = list(state.matched), state.longest

    def _tell_place(self) -> None:
        stage = self.plan.config.stages[min(self.at.stage, len(self.plan.levels) - 1)]
        levels = self.plan.levels[min(self.at.stage, len(self.plan.levels) - 1)]
        scale = levels[min(self.at.level, len(levels) - 1)].scale if levels else 0
        self.watch.resumed(Place(stage.name, scale, len(self.at.losses)))

    def run(self) -> Outcome:
        """Every stage and every level that is not done yet. Raises Stopped where that was asked for."""
        self._require_masks()
        for k in range(self.at.stage, len(self.plan.levels)):
            stage, levels = self.plan.config.stages[k], self.plan.levels[k]
            self.at.stage = k
            if isinstance(stage, Moments | Search):
                self.watch.phase(stage.name)
                self.world, report = run_initial(stage, self.images, self.world, self.comm, self.watch)
                self.watch.phase("optimise")
                self.reports.append(report)
                self.watch.level_ended(report)
                self._require_masks(searched=True)
            if self.at.level == 0 and not self.at.losses:
                self.at.before = self.world.tolist()
            for j in range(self.at.level, len(levels)):
                self.at.level = j
                self._level(levels[j].in_voxels(stage), levels[j])
                if j == len(levels) - 1:
                    self._judge(k, levels[j])
                self.watch.level_ended(self.reports[-1])
                self._level_done(j)
            self.at.level = 0
        return self._outcome()

    def _require_masks(self, *, searched: bool = False) -> None:
        """Raises VoxelError and NoOverlap for masks that leave nothing to compare, where the run has only begun."""
        passed = self.plan.config.stages[: self.at.stage]
        begun = self.at.level or not all(isinstance(stage, Moments | Search) for stage in passed)
        if begun or self.initial or all(image.mask is None for image in self.images):
            return
        if not searched:
            require_voxels(self.plan, self.images, self.comm)
        require_meeting_masks(self.plan, self.images, self.world, self.comm, searched=searched)

    def _stage_of(self, index: tuple[int, int]) -> tuple[Any, Level]:
        stage, level = index
        found = self.plan.levels[stage][level]
        return found.in_voxels(self.plan.config.stages[stage]), found

    def _block(self, level: Level) -> Block:
        return Block(level.fixed.shape, level.partition, self.comm.rank, level.halo, self.images[0].device)

    def _hold_images(self, stage: Any, level: Level) -> None:
        """In 16 bits where a level of mixed storage reads them as they are."""
        half = is_mixed(stage, self.images[0].device)
        for image, made in zip(self.images, (max(level.fixed_factors) > 1, level.moving_made), strict=True):
            image.hold(half=half and not made)

    def _level(self, stage: Any, level: Level) -> None:
        if level.moving_sigmas is not None and in_place(self.images, self.world, self.comm):
            level = level.alike()  # nothing is interpolated, and nothing moves
        self._hold_images(stage, level)
        match stage:
            case Linear():
                self._linear(stage, level)
            case Deformable():
                self._deformable(stage, level)
            case _:
                raise TypeError(f"no engine runs a stage of type {type(stage).__name__}")

    def _linear(self, stage: Linear, level: Level) -> None:
        try:
            begun = None if self.at.before is None else np.array(self.at.before)
            astray = self._give_up_coarser_levels(stage, level, begun)
            given = self.images, self.world, self.comm, self.watch
            self.world, report = run_linear(
                stage, level, *given, begun, partial(make_linear_loss, filling=Filling.of_reports(self.reports))
            )
        except Halted:
            self._checkpoint()
            raise Stopped(STOP_MESSAGE) from None
        report.detail |= astray
        self.reports.append(report)

    def _give_up_coarser_levels(self, stage: Linear, level: Level, begun: Matrix | None) -> dict[str, Any]:
        """Start a level where its stage began, if coarser ones have led astray; both losses for the report then.

        Only where edges are compared, which blend into others at coarse levels.
        """
        if self.at.level == 0 or begun is None or not stage.similarity.build(self.images[0].device.kind).differences:
            return {}
        found = compare(stage, level, self.images, self.comm, (begun, self.world), filling=Filling.of_reports(self.reports))
        if not found.led_astray:
            return {}
        self.world = begun
        return {COARSER: found.losses | {"after": found.after_on_all}}

    def _deformable(self, stage: Deformable, level: Level) -> None:
        keeps = self.kept is not None and level.state == "disk"
        if keeps and not self.saved:
            self._checkpoint()
        if self.store is None:
            self.store = self._make_store(stage, level)
            if self.initial is not None:
                self._set_initial(self.store, level)
        elif not self.store.losses:
            self.store = self.store.refined(lambda: self._make_store(stage, level), self.comm)
        self.at.fields = (self.at.stage, self.at.level)
        if isinstance(self.store, SweptState):
            self.store.kept = keeps
        kind: Any = Loop if level.state == "device" else SweepLoop
        loop = kind(stage, level, self.images, self.world, self.comm, self.trace)
        self.reports.append(loop.run(self.store, self.watch, self._within_level))
        self.store.losses, self.store.matched, self.store.longest = [], [], None
        del loop  # its buffers go before the next level's come

    def _make_store(self, stage: Deformable, level: Level) -> Store:
        """Zeros, where the plan has the level's fields."""
        block = self._block(level)
        if level.state == "device":
            return make_state(stage, level, block)
        optimizer = stage.optimizer.build(stage.storage, block.device.kind)
        kept = self.kept if level.state == "disk" else None
        allocate = self.allocate(level.state) if kept is None else kept.allocate
        return SweptState(block, level.fixed_factors, optimizer, total_reach(stage), allocate)

    def _set_initial(self, store: Store, level: Level) -> None:
        """The displacement to start from."""
        assert self.initial is not None
        planes = store.displacement.span
        for some in pieces(planes, 12 * level.fixed.shape[1] * level.fixed.shape[2]):
            store.put_displacement(some, self.initial(level.fixed, some, self.world))

    def _judge(self, index: int, level: Level) -> None:
        """Take a stage back that made the loss of the linear stage before it, or after a search its own, clearly worse."""
        judge, whose = judge_of(self.plan.config.stages, index)
        before = judge and level.in_voxels(judge)
        if before is None or self.at.before is None or self.initial is not None:
            return
        if self.store is not None and level.state == "device" and before.similarity.reach > level.halo:
            return  # u is not known as far from this rank's planes as that loss reads
        start = np.array(self.at.before)
        u = None if self.store is None else self.store.displacement
        filling = Filling.of_reports(self.reports) if u is None else NO_FILLING
        found = compare(before, level, self.images, self.comm, (start, self.world), u, filling)
        self.reports[-1].detail[whose] = found.losses
        if not found.worse:
            return
        self.world, self.reports[-1].stopped = start, "taken back"
        if self.store is not None:
            zero_planes(self.store.displacement)

    def _within_level(self, store: Store, report: LevelReport, asked: float) -> None:
        """In the middle of a level, all ranks at the same iteration."""
        self.at.losses, self.at.matched, self.at.longest = report.losses, store.matched, store.longest
        if isinstance(store, SweptState) and store.kept and asked < STOP:
            self._commit(store)
            return
        self._checkpoint(optimizer=True)
        self._stop_if(asked)

    def _commit(self, store: SweptState) -> None:
        """The fields as they are on the disk."""
        assert self.kept is not None
        start = time.perf_counter()
        self._update()
        self.kept.commit(self.at, store.length, store.block.own, store.fields)
        self.watch.saved(time.perf_counter() - start)

    def _update(self) -> None:
        self.at.world, self.at.seconds = self.world.tolist(), time.perf_counter() - self.begun
        self.at.reports = [r.as_dict() for r in self.reports]

    def _level_done(self, level: int) -> None:
        """At the end of a level u alone counts; the optimizer starts afresh on the next one."""
        self.at.level, self.at.losses, self.at.matched, self.at.longest = level + 1, [], [], None
        asked = float(self.comm.max(np.array([self.watch.asked(level_end=True)]))[0])
        if asked >= SAVE:
            self._checkpoint()
            self._stop_if(asked)

    def _checkpoint(self, *, optimizer: bool = False) -> None:
        if self.save is None:
            return
        start = time.perf_counter()
        self._update()
        self.saved = True
        if self.store is None:
            self.save(self.at, {}, None)
        else:
            block, fields = self.store.block, self.store.saved(optimizer=optimizer)
            self.save(self.at, {name: (block.own, field) for name, field in fields.items()}, block.shape)
        if self.kept is not None and isinstance(self.store, SweptState):
            self.kept.superseded(self.store.fields if optimizer else {"u": self.store.u})
        self.watch.saved(time.perf_counter() - start)

    def _stop_if(self, asked: float) -> None:
        if asked >= STOP:
            raise Stopped(STOP_MESSAGE)

    def _outcome(self) -> Outcome:
        """The transform, u at full resolution with a plane of halo; the loop's buffers are given up."""
        halo, device = 0 if self.store is None else 1, self.images[0].device
        whole = Block(self.plan.fixed.shape, self.plan.partition, self.comm.rank, halo, device)
        if self.store is None:
            return Outcome(self.world, None, self.reports, whole)
        store, self.store = self.store, None
        for image in self.images:
            image.hold(half=False)  # now that there is room again
        u, block = store.displacement, store.block
        if max(store.factors) == 1 and block.partition == whole.partition and isinstance(u, ArrayPlanes):
            return Outcome(self.world, u, self.reports, block)
        if self.plan.images == SOURCE:
            boxes = source_boxes(self.plan, 0)
            return Outcome(self.world, UpsampledField.of(u, block, store.factors, whole, self.comm, boxes), self.reports, whole)
        if max(store.factors) > 1 or block.partition != whole.partition:
            u = self._at_full_resolution(store, whole)
        exchange_planes([u], whole, self.comm)
        return Outcome(self.world, u, self.reports, whole)

    def _at_full_resolution(self, store: Store, whole: Block) -> Planes:
        """The displacement of a coarser level, upsampled."""
        state = self.plan.levels[-1][-1].state if self.plan.levels[-1] else "device"
        plane = whole.shape[1], whole.shape[2]
        made: Planes = (
            ArrayPlanes(whole.vector(), whole.first)
            if state == "device"
            else self.allocate(state)(3, whole.held, plane, np.float32)
        )
        refine_piecewise(store.displacement, store.block, store.factors, FullResolution(whole, made), self.comm)
        return made

    def allocate(self, state: str) -> Allocate:
        """Makes fields where a level's plan has them."""
        return allocator(state, self.images[0].device, self.scratch)

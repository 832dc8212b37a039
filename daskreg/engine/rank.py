"""One rank's whole run: the stages in order, from images to a transform, from the start or from where an earlier run was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable, Linear, Moments, Search
from daskreg.engine.deformable import Loop
from daskreg.engine.device_loop import DeviceLoop
from daskreg.engine.fields import Fields, is_mixed, make_fields, refine
from daskreg.engine.halo import Block, Movement, finish
from daskreg.engine.images import Image
from daskreg.engine.initial import run_initial
from daskreg.engine.linear import Halted, run_linear
from daskreg.engine.report import STOP, LevelReport, Outcome, Trace, Watch
from daskreg.errors import Stopped
from daskreg.grid import Grid, Span
from daskreg.planning import Level, Plan

Matrix = NDArray[np.float64]
Array = NDArray[np.float32]


@dataclass
class State:
    """Where a run is: what a checkpoint says beside the fields u, m and v.

    level: index within the stage of the level to go on with;  losses: of that level so far, in which case m and v count too;
    fields: index (stage, level) of the level that u belongs to, None without one.
    """

    stage: int = 0
    level: int = 0
    world: list[list[float]] = field(default_factory=lambda: np.eye(4).tolist())
    losses: list[float] = field(default_factory=list)
    fields: tuple[int, int] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)


Read = Callable[[str, Span], Array]  # a field's planes from a checkpoint
Begin = Callable[[Grid, Span, Matrix], Array]  # u of a level's planes, voxels, that an affine map starts from
Save = Callable[
    [State, Mapping[str, tuple[Span, Array]], tuple[int, int, int] | None], None
]  # own planes of fields, wherever they lie, level's shape


class Rank:
    """Runs the stages of a plan; keeps the affine map, the displacement and the reports as it goes."""

    def __init__(
        self,
        plan: Plan,
        images: tuple[Image, Image],
        start: Matrix,
        comm: Communicator,
        watch: Watch,
        save: Save | None = None,
        trace: Trace | None = None,
        begin: Begin | None = None,
    ) -> None:
        self.begin = begin
        self.plan, self.images, self.comm, self.watch, self.save, self.trace = plan, images, comm, watch, save, trace
        self.world = start
        self.at = State(world=start.tolist())
        self.fields: Fields | None = None
        self.reports: list[LevelReport] = []
        if any(is_mixed(stage, images[0].device) for stage in plan.config.stages):
            for image in images:
                image.round()  # once and for all, so that nothing depends on which stages ran in this process

    def resume(self, state: State, read: Read) -> None:
        """Take up where a checkpoint was made, on however many ranks."""
        self.at, self.world = state, np.array(state.world)
        self.reports = [LevelReport(**r) for r in state.reports]
        if state.fields is not None:
            stage, level = state.fields
            self._keep_images(self.plan.config.stages[stage], self.plan.levels[stage][level])
            self.fields = self._read(self.plan.config.stages[stage], self.plan.levels[stage][level], read, state.losses)

    def _read(self, stage: Any, level: Level, read: Read, losses: list[float]) -> Fields:
        block = self._block(level)
        fields = make_fields(stage, level, block)
        fields.losses = list(losses)
        fields.u[...] = block.device.put(read("u", block.held))
        if losses:  # Adam's halo too: it is computed by both sides alike
            fields.set_moments(read("m", block.held), read("v", block.held))
        return fields

    def run(self) -> Outcome:
        """Every stage, every level, that is not done yet."""
        for k in range(self.at.stage, len(self.plan.levels)):
            stage, levels = self.plan.config.stages[k], self.plan.levels[k]
            self.at.stage = k
            if isinstance(stage, Moments | Search):
                self.world, report = run_initial(stage, self.images, self.world, self.comm, self.watch)
                self.reports.append(report)
            for j in range(self.at.level, len(levels)):
                self.at.level = j
                self._level(stage, levels[j])
                self._passed(k, j)
            self.at.level = 0
        return self._outcome()

    def _block(self, level: Level) -> Block:
        return Block(level.fixed.shape, level.partition, self.comm.rank, level.halo, self.images[0].device)

    def _keep_images(self, stage: Any, level: Level) -> None:
        """In 16 bits where a level of mixed storage reads them as they are."""
        half = is_mixed(stage, self.images[0].device)
        for image, factors in zip(self.images, (level.fixed_factors, level.moving_factors), strict=True):
            image.keep(half and max(factors) == 1)

    def _level(self, stage: Any, level: Level) -> None:
        self._keep_images(stage, level)
        match stage:
            case Linear():
                self._linear(stage, level)
            case Deformable():
                self._deformable(stage, level)

    def _linear(self, stage: Linear, level: Level) -> None:
        try:
            self.world, report = run_linear(stage, level, self.images, self.world, self.comm, self.watch)
        except Halted:
            self._keep({})
            raise Stopped("the run was asked to stop; what was reached is kept.") from None
        self.reports.append(report)

    def _deformable(self, stage: Deformable, level: Level) -> None:
        block = self._block(level)
        if self.fields is None:
            self.fields = make_fields(stage, level, block)
            if self.begin is not None:
                self.fields.u[...] = block.device.put(self.begin(level.fixed, block.held, self.world))
        elif not self.fields.losses:
            self.fields = self.fields.refined(lambda: make_fields(stage, level, block), self.comm)
        self.at.fields = (self.at.stage, self.at.level)
        loop = (DeviceLoop if block.device.kind == "cuda" else Loop)(stage, level, self.images, self.world, self.comm, self.trace)
        self.reports.append(loop.run(self.fields, self.watch, self._within))
        self.fields.losses = []
        del loop  # its buffers go before the next level's come

    def _within(self, fields: Fields, report: LevelReport, asked: float) -> None:
        """In the middle of a level, all ranks at the same iteration."""
        self.at.losses = report.losses
        self._keep({"u": fields.u[:, fields.block.inner], **fields.moments()})
        self._stop(asked)

    def _passed(self, stage: int, level: int) -> None:
        """At the end of a level: u alone counts; the next one starts with fresh moments."""
        self.at.level, self.at.losses = level + 1, []
        asked = float(self.comm.max(np.array([self.watch.asked(level_end=True)]))[0])
        if asked:
            fields = self.fields
            self._keep({} if fields is None else {"u": fields.u[:, fields.block.inner]})
            self._stop(asked)

    def _keep(self, arrays: Mapping[str, Array]) -> None:
        if self.save is None:
            return
        fields = self.fields
        if fields is not None and not arrays:
            arrays = {"u": fields.u[:, fields.block.inner]}
        self.at.world = self.world.tolist()
        self.at.reports = [r.as_dict() for r in self.reports]
        own = None if fields is None else fields.block.own
        shape = None if fields is None else fields.block.shape
        self.save(self.at, {name: (own, a) for name, a in arrays.items() if own is not None}, shape)

    def _stop(self, asked: float) -> None:
        if asked >= STOP:
            raise Stopped("the run was asked to stop; what was reached is kept.")

    def _outcome(self) -> Outcome:
        """The transform, u at full resolution with a plane of halo; the loop's buffers are given up."""
        halo, device = 0 if self.fields is None else 1, self.images[0].device
        whole = Block(self.plan.fixed.shape, self.plan.partition, self.comm.rank, halo, device)
        if self.fields is None:
            return Outcome(self.world, None, self.reports, whole)
        u, factors, block = self.fields.u, self.fields.factors, self.fields.block
        self.fields = None
        for image in self.images:
            image.keep(half=False)  # now that there is room again
        if max(factors) == 1 and block.partition == whole.partition:
            return Outcome(self.world, u, self.reports, block)
        finest = whole.vector()
        refine(u, block, factors, whole, (1, 1, 1), finest, self.comm)
        finish(Movement(self.comm, whole.partition.slabs, whole.around(1)).start((finest, whole.first)))
        return Outcome(self.world, finest, self.reports, whole)

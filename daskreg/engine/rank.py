"""One rank's whole run: the stages in order, from images to a transform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable, Linear, Moments, Search
from daskreg.engine.deformable import Fields, Loop, refine
from daskreg.engine.images import Image
from daskreg.engine.initial import run_moments, run_search
from daskreg.engine.linear import run_linear
from daskreg.engine.report import LevelReport, Outcome, Watch
from daskreg.kernels.sample import sample, sample_affine
from daskreg.planning import Level, Plan
from daskreg.transforms.linear import fixed_point, index_map, linear_part

Matrix = NDArray[np.float64]


class Rank:
    """Runs the stages of a plan; keeps the affine map, the displacement and the reports as it goes."""

    def __init__(self, plan: Plan, images: tuple[Image, Image], start: Matrix, comm: Communicator, watch: Watch) -> None:
        self.plan, self.images, self.comm, self.watch = plan, images, comm, watch
        self.world = start
        self.fields: Fields | None = None
        self.reports: list[LevelReport] = []

    def run(self) -> Outcome:
        """Every stage, every level."""
        for stage, levels in zip(self.plan.config.stages, self.plan.levels, strict=True):
            match stage:
                case Moments():
                    self.world, report = run_moments(stage, self.images, self.world, self.comm)
                    self.reports.append(report)
                case Search():
                    self.world, report = run_search(stage, self.images, self.world, self.comm, self.watch)
                    self.reports.append(report)
                case Linear():
                    self._linear(stage, levels)
                case Deformable():
                    self._deformable(stage, levels)
        return Outcome(self.world, self._displacement(), self.reports)

    def _linear(self, stage: Linear, levels: tuple[Level, ...]) -> None:
        for level in levels:
            self.world, report = run_linear(stage, level, self.images, self.world, self.comm, self.watch)
            self.reports.append(report)

    def _deformable(self, stage: Deformable, levels: tuple[Level, ...]) -> None:
        for level in levels:
            shape, factors = level.fixed.shape, level.fixed_factors
            self.fields = Fields.zeros(shape, factors) if self.fields is None else self.fields.refined(shape, factors)
            loop = Loop(stage, level, *self.images, self.world)
            self.reports.append(loop.run(self.fields, self.comm, self.watch))
            del loop  # its buffers go before the next level's come

    def _displacement(self) -> NDArray[np.float32] | None:
        """U at full resolution; the loop's buffers are given up."""
        if self.fields is None:
            return None
        u, factors, self.fields = self.fields.u, self.fields.factors, None
        if max(factors) == 1:
            return u
        finest = np.empty((3, *self.plan.fixed.shape), np.float32)
        refine(u, factors, (1, 1, 1), finest)
        return finest


def resample(plan: Plan, outcome: Outcome, moving: NDArray[np.float32]) -> NDArray[np.float32]:
    """The moving image on the fixed grid, through the whole transform; 0 out of domain."""
    matrix = index_map(outcome.affine, plan.fixed, plan.moving)
    moved = np.empty(plan.fixed.shape, np.float32)
    if outcome.displacement is None:
        sample_affine(moved.shape, 0, fixed_point(matrix), moving, moved)
    else:
        sample(moved.shape, 0, fixed_point(matrix), linear_part(matrix), outcome.displacement, moving, moved)
    return np.nan_to_num(moved, copy=False, nan=0.0)

"""The deformable stage: Adam on a composed warp, as in method.md section 5. The loop reads like the method."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable
from daskreg.engine.images import Image
from daskreg.engine.memory import trim
from daskreg.engine.report import LevelReport, Progress, Watch
from daskreg.engine.smoothing import Smoother
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.errors import Diverged
from daskreg.grid import Index
from daskreg.kernels.adam import adam
from daskreg.kernels.compose import compose, upsample
from daskreg.kernels.sample import pull_back, sample
from daskreg.optimizers.adam import rates, step_scale
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level
from daskreg.similarity import Similarity, make
from daskreg.transforms.linear import fixed_point, index_map, linear_part

Array = NDArray[np.float32]
AT_REST = 1 / 3  # length of the longest first direction when no voxel has more than a twentieth of a clear gradient


@dataclass
class Fields:
    """The displacement u and Adam's moments m, v of one level, with the buffers g and d: 60 bytes a voxel."""

    factors: Index
    u: Array
    m: Array
    v: Array
    g: Array
    d: Array

    @classmethod
    def zeros(cls, shape: Index, factors: Index) -> Fields:
        """At rest."""
        return cls(factors, *(np.zeros((3, *shape), np.float32) for _ in range(5)))

    def refined(self, shape: Index, factors: Index) -> Fields:
        """On a finer level: u upsampled, Adam starts afresh."""
        u, self.m, self.v, self.g, self.d = self.u, *(np.empty((3, 0, 0, 0), np.float32),) * 4
        trim()
        finer = Fields.zeros(shape, factors)
        refine(u, self.factors, factors, finer.u)
        return finer


def refine(u: Array, coarse: Index, fine: Index, finer: Array) -> None:
    """Upsample a displacement from shrink factors ``coarse`` to ``fine``, in voxels of each."""
    gain = np.asarray(coarse, np.float32) / np.asarray(fine, np.float32)
    upsample(finer.shape[1:], 0, np.asarray(fine, np.int32), np.asarray(coarse, np.int32), gain, u, finer)


class Loop:
    """One level of the deformable stage on one rank."""

    def __init__(self, stage: Deformable, level: Level, fixed: Image, moving: Image, world: NDArray[np.float64]) -> None:
        self.stage, self.level = stage, level
        self.fixed, fixed_mask = fixed.level(level.fixed_factors)
        self.moving, moving_mask = moving.level(level.moving_factors)
        self.shape = level.fixed.shape
        matrix = index_map(world, level.fixed, level.moving)
        self.place = (0, fixed_point(matrix), linear_part(matrix))
        self.weights = Weights(fixed_mask, moving_mask, self.shape)
        self.similarity: Similarity = make(stage.similarity)
        self.gradient_filter = Smoother(self.shape, stage.smooth_gradient)
        self.warp_filter = Smoother(self.shape, stage.smooth_warp)
        self.moved = np.empty(self.shape, np.float32)

    def run(self, fields: Fields, comm: Communicator, watch: Watch) -> LevelReport:
        """Iterate until the plateau or the last iteration."""
        report = LevelReport("deformable", self.level.scale, self.shape)
        plateau = Plateau(self.stage.tolerance, self.stage.window)
        start = time.perf_counter()
        for k in range(self.level.iterations):
            loss = self.gradient(fields, comm)
            report.losses.append(loss)
            watch(Progress("deformable", self.level.scale, k + 1, self.level.iterations, loss))
            if not math.isfinite(loss):
                raise Diverged(f"the loss became {loss} at scale {self.level.scale}, iteration {k}; use a smaller step.")
            if plateau.reached(report.losses):
                report.stopped = "plateau"
                break
            if not self.step(fields, k + 1, comm):
                report.stopped = "at rest"
                break
        report.seconds = time.perf_counter() - start
        return report

    def gradient(self, fields: Fields, comm: Communicator) -> float:
        """Loss at u; leaves dC/du, times N, in ``fields.g`` (steps 1)."""
        sample(self.shape, *self.place, fields.u, self.moving, self.moved)
        weight = self.weights.at(self.place, fields.u)
        part = self.similarity.partial(self.fixed, weight, self.moved, fields.d)
        total = add_up(part, self.similarity, comm)
        self.similarity.finish(total, self.fixed, weight, self.moved, fields.d)
        pull_back(self.shape, *self.place, fields.u, self.moving, self.moved, fields.g)
        return self.similarity.value(total)[0]

    def step(self, fields: Fields, t: int, comm: Communicator) -> bool:
        """Smooth, Adam, bound, compose, smooth (steps 2 to 6); False, and no step, where the images match from the start."""
        f, g, w = fields, self.gradient_filter, self.warp_filter
        g.along_zy(f.g, f.d)
        longest = adam(
            self.shape, g.reach, g.tables[2], g.weights, rates(self.stage.betas, t, self.similarity.steep), f.g, f.m, f.v, f.d
        )
        square = float(comm.max(np.array([longest.max()]))[0])
        if t == 1 and square < AT_REST**2:
            return False
        compose(self.shape, 0, self.shape[0], 0, step_scale(square, self.stage.step), f.d, f.u, f.g)
        if w.reach:
            w.into(f.g, f.d, f.u)
        else:
            f.u, f.g = f.g, f.u
        return True

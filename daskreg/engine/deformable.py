"""The deformable stage: Adam on a composed warp, as in method.md section 5. The loop reads like the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending
from daskreg.config import Deformable
from daskreg.engine.fields import Fields, is_mixed
from daskreg.engine.halo import Block, Movement, finish
from daskreg.engine.images import Image
from daskreg.engine.reach import Lookout
from daskreg.engine.report import LevelReport, Progress, Trace, Watch
from daskreg.engine.sampler import make_sampler
from daskreg.engine.smoothing import Smoother
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.errors import Diverged
from daskreg.kernels.adam.cpu import adam
from daskreg.kernels.composition.cpu import compose
from daskreg.optimizers.adam import rates, step_scale
from daskreg.optimizers.stopping import Plateau
from daskreg.planning import Level
from daskreg.similarity import Similarity, make
from daskreg.transforms.linear import index_map, linear_part, to_fixed_point

Array = NDArray[np.float32]
AT_REST = 1 / 3  # length of the longest first direction when no voxel has more than a twentieth of a clear gradient


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
        self.similarity: Similarity = make(stage.similarity)
        self.block = Block(level.fixed.shape, level.partition, comm.rank, level.halo, images[0].device)
        self.gradient_filter = Smoother(self.block, stage.smooth_gradient)
        self.warp_filter = Smoother(self.block, stage.smooth_warp)
        fixed, moving = images
        half = is_mixed(stage, self.block.device)
        self.fixed, mask = fixed.deliver(level.fixed_factors, self.block.around(self.block.halo), comm, half)
        self.sampler = make_sampler(level.residency, moving, level.moving_factors, level.shards, comm, trace, half)
        matrix = index_map(world, level.fixed, level.moving)
        self.place = (self.block.first, to_fixed_point(matrix), linear_part(matrix))
        self.weights = Weights(mask, self.sampler.masked, self.block)
        self.moved = self.block.scalar()
        self.reach = self.warp_filter.reach + 1  # a step is less than a voxel, so a composition reads one plane around
        here = comm.size == 1 or level.residency == "replicate"  # all of the moving image: nobody asks what is reached
        self.lookout = None if here else Lookout(self.block, self.place, level.partition, self.reach, stage.step, comm)
        self._halos()

    def _halos(self) -> None:
        slabs, around = self.block.partition.slabs, self.block.around
        self.window_halo = Movement(self.comm, slabs, around(self.similarity.reach))
        self.gradient_reach = self.gradient_filter.reach + self.warp_filter.reach
        self.gradient_halo = Movement(self.comm, slabs, around(self.gradient_reach))
        self.warp_halo = Movement(self.comm, slabs, around(self.reach))
        self.coming: list[Pending] = []  # planes of u on their way: nothing reads them before the composition

    def run(self, fields: Fields, watch: Watch, keep: Callable[[Fields, LevelReport, float], None]) -> LevelReport:
        """Iterate until the plateau or the last iteration; ``keep`` is called where all ranks have agreed to save."""
        report = LevelReport("deformable", self.level.scale, self.block.shape, list(fields.losses))
        plateau = Plateau(self.stage.tolerance, self.stage.window)
        start = time.perf_counter()
        self.begin(fields)
        for k in range(len(report.losses), self.level.iterations):
            loss = self.gradient(fields)
            report.losses.append(loss)
            watch(Progress("deformable", self.level.scale, k + 1, self.level.iterations, loss))
            if not math.isfinite(loss):
                raise Diverged(f"the loss became {loss} at scale {self.level.scale}, iteration {k}; use a smaller step.")
            if plateau.reached(report.losses):
                report.stopped = "plateau"
                break
            if not self.step(fields, k + 1, watch):
                report.stopped = "at rest"
                break
            if self.asked:
                keep(fields, report, self.asked)
        finish(self.coming)
        report.seconds += time.perf_counter() - start
        return report

    def begin(self, fields: Fields) -> None:
        """What every iteration finds done: u of the neighbours under way, the planes in reach known to all."""
        self.coming = self.warp_halo.start((fields.u, self.block.first))
        if self.lookout is not None:
            self.sampler.prepare(self.lookout.begin(fields.u, len(fields.losses)))
        self.asked = 0.0

    def gradient(self, fields: Fields) -> float:
        """Loss at u; leaves dC/du, times N, in ``fields.g`` (step 1)."""
        f, box = fields, self.block.box()
        self.sampler.look(box, self.place, f.u, self.moved, self.weights.seen, f.g)
        self.weights.combine()
        self._exchange_windows()
        weight = self.weights.array
        part = self.similarity.partial(box, self.fixed, weight, self.moved, f.d)
        total = add_up(part, self.similarity, self.comm, self.block.partition)
        self.similarity.finish(box, total, self.fixed, weight, self.moved, f.d)
        self.sampler.pull_back(box, self.place, f.u, self.moved, f.g)
        return self.similarity.value(total)[0]

    def _exchange_windows(self, after: Any = None) -> None:
        """Planes of moved that windows of others reach; ``after`` as for ``Movement.start``."""
        if self.similarity.reach:
            fields = [self.moved] if self.weights.seen is None else [self.moved, self.weights.seen]
            finish(self.window_halo.start(*((f, self.block.first) for f in fields), after=after))

    def step(self, fields: Fields, t: int, watch: Watch) -> bool:
        """Smooth, Adam, bound, compose, smooth (steps 2 to 6); False, and no step, where the images match from the start."""
        f, g, w, b = fields, self.gradient_filter, self.warp_filter, self.block
        finish(self.gradient_halo.start((f.g, b.first)))
        finish(self.coming)
        box = b.box(w.reach)
        g.along_zy(box, f.g, f.d)
        longest = adam(
            box, g.reach, g.tables[2], g.weights, rates(self.stage.betas, t, self.similarity.steep), f.g, f.m, f.v, f.d
        )
        square = self._agree(longest, watch)
        if t == 1 and square < AT_REST**2:
            return False
        if self.lookout is not None and self.lookout.due(t):
            self.sampler.prepare(self.lookout.agreed(self.lookout.measured(f.u)))
        compose(box, b.first, b.shape[0], step_scale(square, self.stage.step), f.d, f.u, f.g)
        if w.reach:
            w.into(b.box(), f.g, f.d, f.u)
        else:
            f.u, f.g = f.g, f.u
        self.coming = self.warp_halo.start((f.u, b.first))
        return True

    def _agree(self, longest: Array, watch: Watch) -> float:
        """The longest direction anywhere, and whether anyone asks for a checkpoint."""
        table = self.comm.gather(np.array([float(longest.max(initial=0.0)), watch.asked()]))
        self.asked = float(table[:, 1].max())
        return float(table[:, 0].max())

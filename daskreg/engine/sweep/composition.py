"""Composing the displacement of a level with the last step, slab by slab: what that needs of the level, which is no image."""

from __future__ import annotations

from typing import Any

from daskreg.comm import Communicator
from daskreg.config import Deformable
from daskreg.engine.halo import Block
from daskreg.engine.planes import Planes
from daskreg.engine.state import is_mixed
from daskreg.engine.sweep.pipeline import Pipeline, SweptIteration
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.step import LevelSmoother, compose_slab
from daskreg.planning.slabs import Reaches, Slab, SweepStep, schedule


class Composition:
    """The steps of sweeps over a rank's planes, and the filters of a stage.

    still: images that a sweep reads, by name;  masked: whether weights of samples are kept;  backend, clock: see
    ``engine.backend.Backend``;  pipeline: is made and closed by whoever runs it;  most: iterations of a sweep.
    """

    masked = False
    backend: Any
    clock: Any
    pipeline: Pipeline

    def __init__(self, stage: Deformable, block: Block, height: int, comm: Communicator, most: int = 1) -> None:
        self.stage, self.block, self.comm, self.most = stage, block, comm, most
        self.reaches, self.half = Reaches.of(stage), is_mixed(stage, block.device)
        self.filters = LevelSmoother(block, stage.smooth_gradient), LevelSmoother(block, stage.smooth_warp)
        self.still: dict[str, Planes] = {}
        self.schedule(height)

    def schedule(self, height: int) -> None:
        """Slabs of so many planes."""
        self.height, self.steps = height, [self.scheduled(height, n + 1) for n in range(self.most)]

    def scheduled(self, height: int, iterations: int) -> list[SweepStep]:
        """The steps of a sweep of so many iterations."""
        return schedule(self.block.own, self.block.shape[0], height, self.reaches, iterations)

    def finish_step(self, state: SweptState) -> None:
        """Compose with the last direction, without a new gradient."""
        if state.length is not None:
            only = self.pipeline.iterations([state.length], self.clock)
            for _, one, slab in self.pipeline.sweep(only, final=True):
                self.compose(state, one, slab)
            self.pipeline.finish()
            state.length = None
            state.exchange(self.comm)

    def compose(self, state: SweptState, at: SweptIteration, slab: Slab) -> None:
        """A slab that the buffers hold."""
        if at.length is None:
            at.buffers.use_stored_u(slab)
        else:
            compose_slab(self, state.optimizer, at, slab)
            at.buffers.store_u(slab.composed & self.block.own)

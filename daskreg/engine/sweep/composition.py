"""Composing the displacement of a level with the last step, slab by slab: what that needs of the level, which is no image."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from daskreg.comm import Communicator
from daskreg.config import Deformable
from daskreg.engine.halo import Block
from daskreg.engine.planes import Planes
from daskreg.engine.state import is_mixed
from daskreg.engine.sweep.slabs import SlabBuffers
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.step import LevelSmoother, compose_slab
from daskreg.planning.slabs import Reaches, Slab, schedule


class Composition:
    """The slabs of a rank's planes, and the filters of a stage.

    still: images that a sweep reads, by name;  masked: whether weights of samples are kept;  backend, clock: see
    ``engine.backend.Backend``;  buffers: are made and closed by whoever runs it.
    """

    masked = False
    backend: Any
    clock: Any
    buffers: SlabBuffers

    def __init__(self, stage: Deformable, block: Block, height: int, comm: Communicator) -> None:
        self.stage, self.block, self.comm = stage, block, comm
        self.reaches, self.half = Reaches.of(stage), is_mixed(stage, block.device)
        self.filters = LevelSmoother(block, stage.smooth_gradient), LevelSmoother(block, stage.smooth_warp)
        self.still: dict[str, Planes] = {}
        self.schedule(height)

    def schedule(self, height: int) -> None:
        """Slabs of so many planes."""
        self.height, self.slabs = height, self.scheduled(height)
        self.following = dict(pairwise(self.slabs))

    def scheduled(self, height: int) -> list[Slab]:
        """What ``schedule`` would choose."""
        return schedule(self.block.own, self.block.shape[0], height, self.reaches)

    def finish_step(self, state: SweptState) -> None:
        """Compose with the last direction, without a new gradient."""
        if state.length is not None:
            for slab in self.slabs:
                self.buffers.move(slab)
                self.compose(state, slab)
            self.buffers.finish()
            state.length = None
            state.exchange(self.comm)

    def compose(self, state: SweptState, slab: Slab) -> None:
        """A slab that the buffers hold."""
        if state.length is None:
            self.buffers.use_stored_u(slab)
        else:
            compose_slab(self, state, slab)
            self.buffers.store_u(slab.composed & self.block.own)

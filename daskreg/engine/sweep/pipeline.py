"""The iterations of a sweep: each works behind the one before, from whose buffers it reads, and the last one's result is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from daskreg.engine.sweep.slabs import SlabBuffers, StillBuffers
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.transfers import Transfers
from daskreg.planning.slabs import Slab, SweepStep, staged_planes


class SweptIteration:
    """One iteration of a sweep.

    clock: (1,) int32, its row of the optimizer's coefficients;  length: |d|^2 that scales the step which the displacement that it
    reads does not have yet, None where it has;  longest: (1,) float32, the largest |d|^2 of its own direction so far.
    """

    def __init__(self, buffers: SlabBuffers, clock: Any, length: float | None, longest: Any) -> None:
        self.buffers, self.clock, self.length, self.longest = buffers, clock, length, longest


class Pipeline:
    """The buffers of all iterations that a sweep can have.

    loop: a ``SweepLoop``, or a ``Composition``, which evaluates nothing.
    """

    def __init__(self, loop: Any, state: SweptState) -> None:
        self.loop, steps = loop, [step for sweep in loop.steps for step in sweep]
        held = max((len(slab.held) for step in steps for slab in step.slabs if slab is not None), default=0)
        self.still = StillBuffers(loop, max((len(step.images) for step in steps), default=0))
        self.transfers = self._transfers(state)
        self.buffers = [SlabBuffers(loop, state, held, self.still, self.transfers)]
        while len(self.buffers) < loop.most:
            self.buffers.append(SlabBuffers(loop, state, held, self.still, self.transfers, self.buffers[-1]))

    def _transfers(self, state: SweptState) -> Transfers | None:
        if state.at_hand and not self.still.buffers:
            return None
        device, fields = self.loop.block.device, {**state.fields, **{name: self.loop.still[name] for name in self.still.buffers}}
        staged, *sets = staged_planes(self.loop.height, on_gpu=device.kind == "cuda")
        return Transfers(device, fields, staged, (sets[0], sets[1]))

    def iterations(self, lengths: Sequence[float | None], clock: Any) -> list[SweptIteration]:
        """Of a sweep;  lengths: of the step that each composes with;  clock: of the first one."""
        zeros, several = self.loop.block.device.xp.zeros, enumerate(zip(self.buffers, lengths, strict=False))
        return [SweptIteration(b, clock + np.int32(k), length, zeros(1, np.float32)) for k, (b, length) in several]

    def sweep(self, iterations: Sequence[SweptIteration], *, final: bool = False) -> Iterator[tuple[int, SweptIteration, Slab]]:
        """What is to be done: the number of a step, an iteration, and its slab, which is there, and has to be done with then.

        final: no sweep is likely to follow, and nothing is read for one
        """
        steps = self.loop.steps[len(iterations) - 1]
        for k, one in enumerate(iterations):
            one.buffers.begin([step.slabs[k] for step in steps], last=one is iterations[-1])
        for number, step in enumerate(steps):
            self.still.move(step)
            for one, slab in zip(iterations, step.slabs, strict=True):
                if slab is not None:
                    one.buffers.move(slab)
                if one is iterations[0] and step is steps[-1] and not final:
                    self._begin_next(step)
                if slab is not None:
                    yield number, one, slab

    def _begin_next(self, last: SweepStep) -> None:
        """Read the first slab of the next sweep, where the last step changes nothing of it, and no neighbour sends any of it."""
        final, first = last.slabs[-1], self.buffers[0]
        if self.transfers is None or final is None or self.loop.comm.size > 1:
            return
        changed = min(final.composed.start, final.stepped.start)
        if all(span.stop <= changed for spans in first.reads[0].values() for span in spans):
            self.transfers.expect_written(first.reads[0])
            first.begun = 1

    def finish(self) -> None:
        """After a sweep: all that was stored is where it is kept; what was begun of the next one goes on."""
        if self.transfers is not None:
            self.transfers.settle()
        self.still.forget()
        for buffers in self.buffers:
            buffers.forget()

    def close(self) -> None:
        """Nothing is on its way any more."""
        if self.transfers is not None:
            self.transfers.close()

"""Everything that a sweep holds of a slab: the fields that come and go, and what is computed between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.engine.sweep.buffers import EMPTY, Buffer
from daskreg.engine.sweep.evaluation import SlabEvaluation
from daskreg.engine.sweep.state import SweptState
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.planning.slabs import Slab
from daskreg.similarity.base import Samples

if TYPE_CHECKING:
    from daskreg.engine.sweep.loop import SweepLoop


class SlabBuffers:
    """Planes ``held`` of every field, in arrays of the same planes, as kernels want them.

    before, u: the displacement before and after composition;  state: the optimizer's fields;  gradient: dC/du as it is stored;
    work: two fields without a content that lasts.
    """

    def __init__(self, loop: SweepLoop, state: SweptState) -> None:
        self.loop, self.swept = loop, state
        b, capacity = loop.block, max((len(s.held) for s in loop.slabs), default=0)
        plane = b.shape[1], b.shape[2]

        def vector(dtype: Any = np.float32) -> Buffer:
            return Buffer(b.device, (3,), capacity, plane, dtype)

        def scalar() -> Buffer:
            return Buffer(b.device, (), capacity, plane)

        self.before, self.u, self.gradient = vector(), vector(), vector(np.uint16 if loop.half else np.float32)
        self.work = vector(), vector()
        self.state = {name: vector(field.dtype) for name, field in state.optimizer_state.items()}
        self.moved, self.weight = scalar(), scalar() if loop.sampler.masked else None
        self.held = EMPTY
        self.slab: Slab | None = None

    def box(self, planes: Span) -> Shape:
        """For kernels."""
        _, ny, nx = self.loop.block.shape
        return range(planes.start - self.held.start, planes.stop - self.held.start), ny, nx

    # ---------------------------------------------------------------- a slab comes

    def move(self, slab: Slab) -> None:
        """Hold a slab's planes, and read those of u and of the optimizer's fields that come in."""
        r = self.loop.reaches
        compare, step = slab.compared.start, slab.stepped.start
        self.slab, self.held = slab, slab.held
        self.before.hold(slab.held, slab.composed.start - r.displacement)
        self.u.hold(slab.held, compare)
        self.gradient.hold(slab.held, step - r.gradient)
        for buffer in self.state.values():
            buffer.hold(slab.held, min(step, slab.composed.start - r.direction))
        for scalar in (self.moved, self.weight):
            if scalar is not None:
                scalar.hold(slab.held, compare - r.window)
        for work in self.work:
            work.hold(slab.held, slab.held.stop)
        self._read(self.swept.u, self.before, slab.u)
        for name, buffer in self.state.items():
            self._read(self.swept.optimizer_state[name], buffer, slab.state)

    def _read(self, field: Any, buffer: Buffer, until: Span) -> None:
        """The planes behind the known ones."""
        planes = Span(until.start if buffer.known is None else buffer.known.stop, until.stop)
        if len(planes):
            field.read(planes, buffer.fill(planes))

    def use_stored_u(self, slab: Slab) -> None:
        """Where no step is left to compose with."""
        self.u.fill(slab.composed)[...] = self.before.part(slab.composed)

    def sampled(self, planes: Span) -> None:
        """Values and weights of these planes are there."""
        for scalar in (self.moved, self.weight):
            if scalar is not None:
                scalar.fill(planes)

    def differentiated(self, planes: Span) -> None:
        """The gradient of these planes is there."""
        if len(planes):
            self.gradient.fill(planes)

    def evaluation(self, planes: Span, totals: Any, value: Any) -> SlabEvaluation:
        """What a similarity compares on some planes."""
        loop, device = self.loop, self.loop.block.device
        here = self.held.within(loop.here)
        weight = self.weight.array if self.weight is not None else device.no_mask if loop.mask is None else loop.mask[here]
        scratch, slope = self.work[0].array, self.work[1].array[0]
        samples = Samples(self.box(planes), self.held.start, loop.fixed[here], weight, self.moved.array, scratch)
        mapping = loop.mapping_here
        return SlabEvaluation(samples, slope, loop.sampler, mapping, self.u.array, self.gradient.array, totals, value)

    # ---------------------------------------------------------------- a slab goes

    def store_u(self, planes: Span) -> None:
        """The new displacement, back to where it is kept."""
        if len(planes):
            self.swept.u.write(planes, self.u.part(planes))

    def store_state(self, planes: Span) -> None:
        """The optimizer's fields after a step."""
        for name, buffer in self.state.items():
            self.swept.optimizer_state[name].write(planes, buffer.part(planes))

    def forget(self) -> None:
        """The next sweep begins at the first plane."""
        for buffer in (self.before, self.u, self.gradient, *self.state.values(), *self.work, self.moved, self.weight):
            if buffer is not None:
                buffer.forget()

    def finish(self) -> None:
        """After a sweep: all that was stored is where it is kept."""
        self.forget()

    def close(self) -> None:
        """Give the memory up."""

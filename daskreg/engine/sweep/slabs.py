"""Everything that an iteration of a sweep holds of a slab: the fields that come and go, and what is computed between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskreg.engine.copies import copy_planes
from daskreg.engine.planes import at_hand
from daskreg.engine.sweep.buffers import EMPTY, Buffer
from daskreg.engine.sweep.evaluation import SlabEvaluation
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.transfers import Reads, Transfers
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.planning.slabs import Slab, SweepStep
from daskreg.similarity.base import Samples

FIXED, MASK = "fixed", "mask"  # names of images that a sweep reads


class StillBuffers:
    """Planes of the fixed image and its mask that all iterations of a sweep hold, where these are not in memory."""

    def __init__(self, loop: Any, capacity: int) -> None:
        self.loop, b = loop, loop.block
        apart = {name: image.dtype for name, image in loop.still.items() if not at_hand(image, b.device)}
        self.buffers = {name: Buffer(b.device, (1,), capacity, b.shape[1:], dtype) for name, dtype in apart.items()}

    def move(self, step: SweepStep) -> None:
        """Hold a step's planes."""
        for buffer in self.buffers.values():
            buffer.hold(step.images, step.compared)

    def planes(self, name: str, planes: Span) -> Any:
        """Of an image, None without it."""
        if name in self.buffers:
            return self.buffers[name].part(planes)[0]
        kept: Any = self.loop.still.get(name)
        return None if kept is None else kept.array[0, planes.within(kept.span)]

    def forget(self) -> None:
        """The next sweep begins at the first plane."""
        for buffer in self.buffers.values():
            buffer.forget()


class SlabBuffers:
    """Planes ``held`` of every field, in arrays of the same planes, as kernels want them.

    before, u: the displacement before and after composition;  state: the optimizer's fields;  gradient: dC/du as it is stored;
    work: two fields without a content that lasts, which all iterations share;  still: see ``StillBuffers``.
    transfers: between here and where fields are kept, None where these are in the machine's memory;  source: buffers of the
    iteration before, from which the fields come, None for the first one.
    loop: a ``SweepLoop``, or a ``Composition``, which evaluates nothing;  capacity: planes.
    """

    def __init__(
        self,
        loop: Any,
        state: SweptState,
        capacity: int,
        still: StillBuffers,
        transfers: Transfers | None,
        source: SlabBuffers | None = None,
    ) -> None:
        self.loop, self.swept, self.still, self.transfers, self.source = loop, state, still, transfers, source
        b = loop.block
        plane = b.shape[1], b.shape[2]

        def vector(dtype: Any = np.float32) -> Buffer:
            return Buffer(b.device, (3,), capacity, plane, dtype)

        def scalar() -> Buffer:
            return Buffer(b.device, (), capacity, plane)

        self.before, self.u, self.gradient = vector(), vector(), vector(np.uint16 if loop.half else np.float32)
        self.work: tuple[Buffer, Buffer] = (vector(), vector()) if source is None else source.work
        self.composed: tuple[Span, Any] = EMPTY, None  # planes before their filter, which the next slab's filter reads as well
        self.state: dict[str, Buffer] = {name: vector(field.dtype) for name, field in state.optimizer_state.items()}
        self.moved, self.weight = scalar(), scalar() if loop.masked else None
        self.held: Span = EMPTY
        self.last = source is None
        self.begun = 0  # slabs of the next sweep that are being read
        self.reads, self.taken = list[Reads](), 0

    def box(self, planes: Span) -> Shape:
        """For kernels."""
        _, ny, nx = self.loop.block.shape
        return range(planes.start - self.held.start, planes.stop - self.held.start), ny, nx

    # ---------------------------------------------------------------- a slab comes

    def begin(self, slabs: Sequence[Slab | None], *, last: bool) -> None:
        """A sweep;  slabs: of all of its steps;  last: whether the result of this iteration is kept."""
        names = [*self.swept.fields, *(self.still.buffers if self.source is None else ())]
        self.reads, self.taken, self.last = _reads([slab for slab in slabs if slab is not None], names), 0, last
        if self.transfers is not None and self.source is None:
            self.transfers.expect(self.reads[self.begun :])
            self.begun = 0

    def move(self, slab: Slab) -> None:
        """Hold a slab's planes, and bring those of u and of the optimizer's fields that it reads for the first time."""
        r = self.loop.reaches
        compare, step = slab.compared.start, slab.stepped.start
        self.held = slab.held
        self.before.hold(slab.held, slab.composed.start - r.displacement)
        self.u.hold(slab.held, min(compare, slab.lent_u))
        self.gradient.hold(slab.held, step - r.gradient)
        for buffer in self.state.values():
            buffer.hold(slab.held, min(step, slab.composed.start - r.direction, slab.lent_state))
        for scalar in (self.moved, self.weight):
            if scalar is not None:
                scalar.hold(slab.held, compare - r.window)
        for work in self.work:
            work.hold(slab.held, slab.held.stop)
        self._bring(self.reads[self.taken])
        self.taken += 1

    def _bring(self, reads: Reads) -> None:
        if self.source is None and self.transfers is not None:
            self.transfers.take(self._place)
            return
        for name, spans in reads.items():
            for planes in spans:
                if self.source is None:
                    self.swept.fields[name].read(planes, self._place(name, planes))
                else:
                    copy_planes(self.source.made(name, planes), self._place(name, planes))

    def made(self, name: str, planes: Span) -> Any:
        """Of the new displacement, or of the optimizer's fields after the step."""
        return (self.u if name == "u" else self.state[name]).part(planes)

    def _place(self, name: str, planes: Span) -> Any:
        """Where planes of a field or an image come to."""
        if name in self.still.buffers:
            return self.still.buffers[name].fill(planes)
        return (self.before if name == "u" else self.state[name]).fill(planes)

    def use_stored_u(self, slab: Slab) -> None:
        """Where no step is left to compose with."""
        self.u.fill(slab.composed)[...] = self.before.part(slab.composed)

    def keep_composed(self, planes: Span, reach: int) -> None:
        """What was composed around the end of these planes, before a filter overwrites it."""
        kept = Span(planes.stop - reach, planes.stop + reach) & self.loop.block.partition.whole
        self.composed = kept, self.work[0].part(kept).copy()

    def bring_composed(self, around: Span) -> Span:
        """Put back what was kept of these planes; those that are left to compose."""
        kept, array = self.composed
        if not len(kept) or kept.start != around.start:
            return around
        self.work[0].part(kept)[...] = array
        return Span(kept.stop, around.stop)

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
        weight = self.weight.array if self.weight is not None else self.still.planes(MASK, self.held)
        scratch, slope = self.work[0].array, self.work[1].array[0]
        fixed = self.still.planes(FIXED, self.held)
        samples = Samples(
            self.box(planes), self.held.start, fixed, device.no_mask if weight is None else weight, self.moved.array, scratch
        )
        mapping = loop.mapping._replace(first=self.held.start)
        return SlabEvaluation(samples, slope, loop.sampler, mapping, self.u.array, self.gradient.array, totals, value)

    # ---------------------------------------------------------------- a slab goes

    def store_u(self, planes: Span) -> None:
        """The new displacement, back to where it is kept."""
        if len(planes):
            self._store("u", planes, self.u)

    def store_state(self, planes: Span) -> None:
        """The optimizer's fields after a step."""
        for name, buffer in self.state.items():
            self._store(name, planes, buffer)

    def _store(self, name: str, planes: Span, buffer: Buffer) -> None:
        if not self.last:
            return
        if self.transfers is None:
            self.swept.fields[name].write(planes, buffer.part(planes))
        else:
            self.transfers.put(name, planes, buffer.part(planes))

    def forget(self) -> None:
        """The next sweep begins at the first plane."""
        fields = (self.before, self.u, self.gradient, *self.state.values())
        for buffer in (*fields, *self.work, self.moved, self.weight):
            if buffer is not None:
                buffer.forget()
        self.composed = EMPTY, None


def _reads(slabs: Sequence[Slab], names: Sequence[str]) -> list[Reads]:
    """What each slab reads of every field: the planes behind those that the one before it has read."""
    found, read = list[Reads](), dict[str, Span]()
    for slab in slabs:
        until = {name: _until(slab, name) for name in names}
        new = {n: Span(max(s.start, read[n].stop) if n in read else s.start, s.stop) for n, s in until.items()}
        found.append({name: [planes] if len(planes) else [] for name, planes in new.items()})
        read = until
    return found


def _until(slab: Slab, name: str) -> Span:
    """As far as a field has been read after a slab."""
    if name in (FIXED, MASK):
        return slab.composed
    return slab.u if name == "u" else slab.state

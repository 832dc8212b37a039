"""Everything that a sweep holds of a slab: the fields that come and go, and what is computed between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskreg.engine.planes import at_hand
from daskreg.engine.sweep.buffers import EMPTY, Buffer
from daskreg.engine.sweep.evaluation import SlabEvaluation
from daskreg.engine.sweep.state import SweptState
from daskreg.engine.sweep.transfers import Reads, Transfers
from daskreg.grid import Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.planning.slabs import Slab, staged_planes
from daskreg.similarity.base import Samples

FIXED, MASK = "fixed", "mask"  # names of images that a sweep reads


class SlabBuffers:
    """Planes ``held`` of every field, in arrays of the same planes, as kernels want them.

    before, u: the displacement before and after composition;  state: the optimizer's fields;  gradient: dC/du as it is stored;
    work: two fields without a content that lasts;  still: of the fixed image and its mask, where they are not in memory.
    loop: a ``SweepLoop``, or a ``Composition``, which evaluates nothing.
    """

    def __init__(self, loop: Any, state: SweptState) -> None:
        self.loop, self.swept = loop, state
        b, capacity = loop.block, max((len(s.held) for s in loop.slabs), default=0)
        plane = b.shape[1], b.shape[2]

        def vector(dtype: Any = np.float32) -> Buffer:
            return Buffer(b.device, (3,), capacity, plane, dtype)

        def scalar() -> Buffer:
            return Buffer(b.device, (), capacity, plane)

        self.before, self.u, self.gradient = vector(), vector(), vector(np.uint16 if loop.half else np.float32)
        self.work = vector(), vector()
        self.composed: tuple[Span, Any] = EMPTY, None  # planes before their filter, which the next slab's filter reads as well
        self.state = {name: vector(field.dtype) for name, field in state.optimizer_state.items()}
        self.moved, self.weight = scalar(), scalar() if loop.masked else None
        apart = {name: image.dtype for name, image in loop.still.items() if not at_hand(image, b.device)}
        self.still = {name: Buffer(b.device, (1,), capacity, plane, dtype) for name, dtype in apart.items()}
        self.held = EMPTY
        self.begun = 0  # slabs of the next sweep that are being read
        self.reads = _reads(loop.slabs, [*state.fields, *self.still])
        fields = {**state.fields, **{name: loop.still[name] for name in self.still}}
        staged, *sets = staged_planes(loop.height, on_gpu=b.device.kind == "cuda")
        self.transfers = None if state.at_hand and not self.still else Transfers(b.device, fields, staged, (sets[0], sets[1]))

    def box(self, planes: Span) -> Shape:
        """For kernels."""
        _, ny, nx = self.loop.block.shape
        return range(planes.start - self.held.start, planes.stop - self.held.start), ny, nx

    # ---------------------------------------------------------------- a slab comes

    def move(self, slab: Slab) -> None:
        """Hold a slab's planes, and read those of u and of the optimizer's fields that come in."""
        r = self.loop.reaches
        compare, step = slab.compared.start, slab.stepped.start
        self.held = slab.held
        self.before.hold(slab.held, slab.composed.start - r.displacement)
        self.u.hold(slab.held, compare)
        self.gradient.hold(slab.held, step - r.gradient)
        for buffer in self.state.values():
            buffer.hold(slab.held, min(step, slab.composed.start - r.direction))
        for scalar in (self.moved, self.weight):
            if scalar is not None:
                scalar.hold(slab.held, compare - r.window)
        for image in self.still.values():
            image.hold(slab.held, compare - r.window)
        for work in self.work:
            work.hold(slab.held, slab.held.stop)
        k = self.loop.slabs.index(slab)
        if self.transfers is not None:
            if k == 0:
                self.transfers.expect(self.reads[self.begun :])
                self.begun = 0
            self.transfers.take(self._place)
            if slab is self.loop.slabs[-1] and self._may_begin:
                self.transfers.expect_written(self.reads[0])
                self.begun = 1
            return
        for name, spans in self.reads[k].items():
            for planes in spans:
                self.swept.fields[name].read(planes, self._buffer(name).fill(planes))

    @property
    def _may_begin(self) -> bool:
        """Whether the last slab changes nothing that the next sweep's first one reads, and no neighbour sends any of it."""
        last, first = self.loop.slabs[-1], self.reads[0]
        changed = min(last.composed.start, last.stepped.start)
        return self.loop.comm.size == 1 and all(span.stop <= changed for spans in first.values() for span in spans)

    def _buffer(self, name: str) -> Buffer:
        return self.before if name == "u" else self.still[name] if name in self.still else self.state[name]

    def _place(self, name: str, planes: Span) -> Any:
        return self._buffer(name).fill(planes)

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
        weight = self.weight.array if self.weight is not None else self.image(MASK, self.held)
        scratch, slope = self.work[0].array, self.work[1].array[0]
        fixed = self.image(FIXED, self.held)
        samples = Samples(
            self.box(planes), self.held.start, fixed, device.no_mask if weight is None else weight, self.moved.array, scratch
        )
        mapping = loop.mapping_here
        return SlabEvaluation(samples, slope, loop.sampler, mapping, self.u.array, self.gradient.array, totals, value)

    def image(self, name: str, planes: Span) -> Any:
        """Planes that are held of the fixed image, or of its mask, None without one."""
        if name in self.still:
            return self.still[name].part(planes)[0]
        kept: Any = self.loop.still.get(name)
        return None if kept is None else kept.array[0, planes.within(kept.span)]

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
        if self.transfers is None:
            self.swept.fields[name].write(planes, buffer.part(planes))
        else:
            self.transfers.put(name, planes, buffer.part(planes))

    def forget(self) -> None:
        """The next sweep begins at the first plane."""
        fields = (self.before, self.u, self.gradient, *self.state.values(), *self.still.values())
        for buffer in (*fields, *self.work, self.moved, self.weight):
            if buffer is not None:
                buffer.forget()
        self.composed = EMPTY, None

    def finish(self) -> None:
        """After a sweep: all that was stored is where it is kept; what was begun of the next one goes on."""
        if self.transfers is not None:
            self.transfers.settle()
        self.forget()

    def close(self) -> None:
        """Nothing is on its way any more."""
        if self.transfers is not None:
            self.transfers.close()


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

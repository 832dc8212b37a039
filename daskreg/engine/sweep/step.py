"""One slab of a sweep: compose its displacement, step its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.engine.halo import Block
from daskreg.engine.smoothing import Smoother
from daskreg.engine.state import smooth_half
from daskreg.engine.sweep.state import DIRECTION
from daskreg.grid import Partition, Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.models.base import BlockLayout
from daskreg.optimizers.base import Optimizer
from daskreg.planning.slabs import Slab

if TYPE_CHECKING:
    from daskreg.engine.sweep.composition import Composition
    from daskreg.engine.sweep.pipeline import SweptIteration
    from daskreg.engine.sweep.slabs import SlabBuffers


class LevelSmoother(Smoother):
    """A filter with the tables of a whole level, of which slabs take their planes."""

    first: Callable[[], None] | None = None

    def __init__(self, block: Block, sigma: float) -> None:
        super().__init__(Block(block.shape, Partition.of(block.shape[0], 1), device=block.device), sigma)

    def at(self, held: Span, first: Callable[[], None] | None = None) -> Smoother:
        """For arrays of these planes;  first: is called before they are overwritten."""
        found, planes = copy(self), slice(held.start, held.stop)
        found.first = first
        for name in ("tables", "norms", "ones", "shares"):
            whole = getattr(self, name)
            setattr(found, name, [whole[0][planes], *whole[1:]])
        return found

    def into(self, box: Shape, field: Any, scratch: Any, smoothed: Any) -> None:
        """See ``Smoother``."""
        if self.first is not None:
            self.first()
        super().into(box, field, scratch, smoothed)


class _Fields:
    """What an update of the displacement reads and writes: ``models.base.Fields``."""

    def __init__(self, u: Any, work: tuple[Any, Any], filtered: Any) -> None:
        self.u, self.g, self.d, self.filtered = u, *work, filtered

    @property
    def filter_scratch(self) -> Any:
        """The direction has been read by then."""
        return self.d


class _Launcher:
    """Launches at once: ``models.base.Launcher``."""

    def __init__(self, box: Shape, longest: Any) -> None:
        self.box, self.longest = box, longest

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """Now."""
        launches()

    def launch(self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False) -> Any:
        """On all planes."""
        kernel(self.box)


class SlabStep:
    """What an optimizer sees of a slab: ``optimizers.base.Step``."""

    idle = False

    def __init__(self, loop: Composition, b: SlabBuffers, planes: Span, clock: Any, longest: Any) -> None:
        self.box, self.first, self.planes = b.box(planes), b.held.start, len(b.held)
        self.filter: Any = loop.filters[0].at(b.held)
        self.gradient, self.direction, self.clock, self.longest = b.gradient.array, b.work[1].array, clock, longest
        self.state = {name: buffer.array for name, buffer in b.state.items()}
        self.coefficients = loop.backend.coefficients
        self._buffers, self._half, self._span = b, loop.half, planes

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """Now."""
        launches()

    def smoothed(self) -> Any:
        """The gradient smoothed along all axes; it and the direction are overwritten."""
        b = self._buffers
        if self._half:
            around = b.box(self._span.grow(self.filter.reach) & b.held)
            return smooth_half(self.box, around, self.filter, self.gradient, self.direction, b.work[0].array)
        self.filter.into(self.box, self.gradient, self.direction, self.direction)
        return self.direction


def compose_slab(loop: Composition, optimizer: Optimizer, at: SweptIteration, slab: Slab) -> None:
    """The displacement after the step of the iteration before, on the planes that are composed."""
    b, s, planes = at.buffers, loop.stage, slab.composed
    whole, xp = loop.block.partition.whole, loop.block.device.xp
    around = b.bring_composed(planes.grow(loop.reaches.direction) & whole)
    before = at.clock - 1  # the row of the step that made this direction
    view = SlabStep(loop, b, around, before, None)
    if optimizer.restores_direction:
        optimizer.restore_direction(view)
    else:
        b.work[1].part(around)[...] = b.state[DIRECTION].part(around)
    filter_ = loop.filters[1].at(b.held, partial(b.keep_composed, planes, loop.reaches.direction))
    shortens = s.iterations_per_sweep > 1
    layout = BlockLayout(b.box(planes), b.box(around), b.held.start, len(whole), len(b.held), filter_, s.maximum_step, shortens)
    fields = _Fields(b.before.array, (b.work[0].array, b.work[1].array), b.u.array)
    longest = xp.full(1, at.length, np.float32)
    model = s.model.build(layout, loop.block.device.kind)
    model.update(fields, optimizer.stored_direction(view), _Launcher(b.box(planes), longest))
    new = b.u.fill(planes)
    if fields.u is not b.before.array:  # not filtered axis by axis
        new[...] = fields.u[:, planes.within(b.held)]


def step_slab(loop: Composition, optimizer: Optimizer, at: SweptIteration, slab: Slab) -> None:
    """Smooth the gradient, update the optimizer's state, and raise the longest direction, on the planes that are stepped."""
    b, planes = at.buffers, slab.stepped
    if not len(planes):
        return
    xp = loop.block.device.xp
    longest = xp.zeros(1, np.float32)
    read_again = Span(planes.stop - loop.reaches.gradient, planes.stop) & b.held
    kept = b.gradient.part(read_again).copy()
    optimizer.step(SlabStep(loop, b, planes, at.clock, longest))
    xp.maximum(at.longest, longest, out=at.longest)
    if not optimizer.restores_direction:
        b.state[DIRECTION].part(planes)[...] = b.work[1].part(planes)
    b.gradient.part(read_again)[...] = kept
    b.store_state(planes)

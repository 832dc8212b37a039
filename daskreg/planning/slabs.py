"""Which planes each step of a sweep reads, computes and writes: integers alone.

An iteration is one pass along z. Each operation works a few planes behind the one whose result it reads, so that buffers of a few
planes more than a slab are enough, and nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daskreg.config import Deformable, Optimised
from daskreg.deferred import DeferredModule
from daskreg.grid import Span

if TYPE_CHECKING:
    from daskreg.kernels.smoothing import cpu as smoothing
else:
    smoothing = DeferredModule("daskreg.kernels.smoothing.cpu")

HEIGHTS = (4, 64)  # planes of a slab: fewest, and those from which on more make nothing faster

PART = 4  # planes of a staging array, on a CPU; a GPU's has a whole slab
# Planes that are read ahead at most, and written behind, on a CPU: they take memory that makes slabs higher
AHEAD, BEHIND = 24, 24


@dataclass(frozen=True)
class Reaches:
    """Planes around its own that each operation reads.

    displacement, direction: of u and of d, to compose;  window: of moved, to compare;  gradient: of g, to smooth it.
    """

    displacement: int
    direction: int
    window: int
    gradient: int

    @classmethod
    def of(cls, stage: Deformable) -> Reaches:
        """Of a stage's operations."""
        model, warp = stage.model, stage.smooth_warp
        gradient = smoothing.gaussian_radius(stage.smooth_gradient)
        return cls(model.reach(warp), model.direction_reach(warp), stage.similarity.reach, gradient)

    @property
    def total(self) -> int:
        """Planes of fields around a slab on which what is computed there depends."""
        return self.gradient + self.window + max(self.displacement, self.direction)


def total_reach(stage: Optimised) -> int:
    """Planes around a slab on which what a stage computes there depends."""
    return Reaches.of(stage).total if isinstance(stage, Deformable) else stage.similarity.reach


@dataclass(frozen=True)
class Slab:
    """One step: planes of the level.

    composed: whose displacement is composed and whose points are sampled;  compared: that get a gradient;  stepped: whose
    optimizer's state is updated;  held: that the buffers hold meanwhile;  u, state: as far as fields have been read after it.
    """

    composed: Span
    compared: Span
    stepped: Span
    held: Span
    u: Span
    state: Span


@dataclass(frozen=True)
class Extent:
    """All planes that a rank's sweep composes, compares and steps, and whose fields it reads for that.

    Where there are neighbours, it computes again what they do near the border: the fields around the own planes are exchanged
    once an iteration.
    """

    composed: Span
    compared: Span
    stepped: Span
    u: Span
    state: Span

    @classmethod
    def of(cls, own: Span, planes: int, reaches: Reaches) -> Extent:
        """For the own planes of a level."""
        whole = Span(0, planes)
        compared = own.grow(reaches.gradient) & whole
        composed = compared.grow(reaches.window) & whole
        u, state = (composed.grow(reach) & whole for reach in (reaches.displacement, reaches.direction))
        return cls(composed, compared, own, u, state)


def schedule(own: Span, planes: int, height: int, reaches: Reaches) -> list[Slab]:
    """The steps of a sweep over the own planes of a level, ``height`` planes at a time."""
    whole, slabs = Extent.of(own, planes, reaches), list[Slab]()
    low = (whole.composed.start, whole.compared.start, whole.stepped.start)
    while low[0] < whole.composed.stop:
        end = min(low[0] + height, whole.composed.stop)
        done = end == whole.composed.stop
        compared = whole.compared.stop if done else min(max(end - reaches.window, low[1]), whole.compared.stop)
        until = min(compared - reaches.gradient, end - reaches.direction)  # the next slab composes with older state from there on
        stepped = own.stop if done else min(max(until, low[2]), own.stop)
        start = min(low[0] - reaches.displacement, low[0] - reaches.direction, low[1] - reaches.window, low[2] - reaches.gradient)
        u, state = min(end + reaches.displacement, whole.u.stop), min(end + reaches.direction, whole.state.stop)
        slabs.append(
            Slab(
                composed=Span(low[0], end),
                compared=Span(low[1], compared),
                stepped=Span(low[2], stepped),
                held=Span(max(start, 0), max(u, state)),
                u=Span(whole.u.start, u),
                state=Span(whole.state.start, state),
            )
        )
        low = end, compared, stepped
    return slabs


def staged_planes(height: int, *, on_gpu: bool) -> tuple[int, int, int]:
    """Planes of a field in a staging array, and how many of these are for reading and for writing (``sweep.transfers``)."""
    if on_gpu:
        return height, 2, 2
    each = min(height, PART)
    return each, max(2, -(-min(height, AHEAD) // each)), max(2, BEHIND // each)


def held_planes(height: int, planes: int, reaches: Reaches) -> int:
    """Most planes that buffers hold at once."""
    ahead = max(reaches.displacement, reaches.direction)
    lag = max(reaches.window + reaches.gradient, reaches.direction)  # of the planes that are stepped
    return min(planes, height + ahead + max(ahead, 2 * reaches.window, lag + reaches.gradient))

"""Which planes each step of a sweep reads, computes and writes: integers alone.

An iteration is one pass along z. Each operation works a few planes behind the one whose result it reads, so that buffers of a few
planes more than a slab are enough, and nothing is computed twice. Several iterations can share a pass: each works behind the one
before in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    """Planes around a slab on which what a stage computes there depends, a deformable one in a sweep."""
    return Reaches.of(stage).total * stage.iterations_per_sweep if isinstance(stage, Deformable) else stage.similarity.reach


@dataclass(frozen=True)
class Slab:
    """What one iteration does in a step: planes of the level.

    composed: whose displacement is composed and whose points are sampled;  compared: that get a gradient;  stepped: whose
    optimizer's state is updated;  held: that the buffers hold meanwhile;  u, state: as far as fields have been read after it;
    lent_u, lent_state: first planes of the new fields that the next iteration of the sweep still has to read.
    """

    composed: Span
    compared: Span
    stepped: Span
    held: Span
    u: Span
    state: Span
    lent_u: int
    lent_state: int

    @property
    def sampled(self) -> Span:
        """Whose points are sampled, for values or for a gradient."""
        return Span(min(self.composed.start, self.compared.start), self.composed.stop)


@dataclass(frozen=True)
class SweepStep:
    """A step of a sweep: a slab of every iteration, from the first one on; None where an iteration rests.

    images: planes of the fixed image that are held meanwhile, from ``compared`` on for good.
    """

    slabs: tuple[Slab | None, ...]
    images: Span
    compared: int

    @property
    def sampled(self) -> Span:
        """Planes whose points any iteration samples."""
        return hull(slab.sampled for slab in self.slabs if slab is not None)


@dataclass(frozen=True)
class Extent:
    """All planes that an iteration of a rank's sweep composes, compares and steps, and whose fields it reads for that.

    Where there are neighbours, it computes again what they do near the border: the fields around the own planes are exchanged
    once a sweep.
    """

    composed: Span
    compared: Span
    stepped: Span
    u: Span
    state: Span

    @classmethod
    def of(cls, own: Span, planes: int, reaches: Reaches, composed: Span | None = None) -> Extent:
        """For planes of a level whose optimizer's state is wanted afterwards, and perhaps more whose displacement is."""
        whole = Span(0, planes)
        compared = own.grow(reaches.gradient) & whole
        made = hull([compared.grow(reaches.window) & whole, composed or own])
        u, state = (made.grow(reach) & whole for reach in (reaches.displacement, reaches.direction))
        return cls(made, compared, own, u, state)


def extents(own: Span, planes: int, reaches: Reaches, iterations: int) -> list[Extent]:
    """Of all iterations of a sweep: each makes what the next one reads, the last one the own planes."""
    found = [Extent.of(own, planes, reaches)]
    while len(found) < iterations:
        found.insert(0, Extent.of(found[0].state, planes, reaches, found[0].u))
    return found


class _Iteration:
    """How far an iteration of a sweep is."""

    def __init__(self, whole: Extent, reaches: Reaches, height: int, before: _Iteration | None) -> None:
        self.whole, self.reaches, self.height, self.before = whole, reaches, height, before
        self.low = whole.composed.start, whole.compared.start, whole.stepped.start
        self.read = whole.u.start, whole.state.start

    @property
    def done(self) -> bool:
        """Whether all of its planes are."""
        return self.low[0] >= self.whole.composed.stop

    def _end(self) -> int:
        """As far as it can compose: what it reads has been made."""
        end, r, before = min(self.low[0] + self.height, self.whole.composed.stop), self.reaches, self.before
        return end if before is None or before.done else min(end, before.low[0] - r.displacement, before.low[2] - r.direction)

    def advance(self, after: _Iteration | None) -> Slab | None:
        """The next planes; None where it has to wait, or is done;  after: the next iteration, as it is before this step."""
        end, whole, low, r = self._end(), self.whole, self.low, self.reaches
        if end <= low[0]:
            return None
        done = end == whole.composed.stop
        compared = whole.compared.stop if done else min(max(end - r.window, low[1]), whole.compared.stop)
        until = min(compared - r.gradient, end - r.direction)  # the next slab composes with older state from there on
        stepped = whole.stepped.stop if done else min(max(until, low[2]), whole.stepped.stop)
        lent = (whole.composed.stop, whole.stepped.stop) if after is None else after.read
        start = min(low[0] - r.displacement, low[0] - r.direction, low[1] - r.window, low[2] - r.gradient, *lent)
        u, state = min(end + r.displacement, whole.u.stop), min(end + r.direction, whole.state.stop)
        self.low, self.read = (end, compared, stepped), (u, state)
        return Slab(
            composed=Span(low[0], end),
            compared=Span(low[1], compared),
            stepped=Span(low[2], stepped),
            held=Span(max(start, 0), max(u, state)),
            u=Span(whole.u.start, u),
            state=Span(whole.state.start, state),
            lent_u=lent[0],
            lent_state=lent[1],
        )


def schedule(own: Span, planes: int, height: int, reaches: Reaches, iterations: int = 1) -> list[SweepStep]:
    """The steps of a sweep over the own planes of a level, ``height`` planes at a time.

    Each iteration works as far behind the one before as what it reads of that has to be there.
    """
    running = list[_Iteration]()
    for extent in extents(own, planes, reaches, iterations):
        running.append(_Iteration(extent, reaches, height, running[-1] if running else None))
    steps = list[SweepStep]()
    while not running[-1].done:
        compared = min((one.low[1] - reaches.window for one in running if not one.done), default=0)
        slabs = tuple(one.advance(after) for one, after in zip(running, [*running[1:], None], strict=True))
        held = hull(slab.held for slab in slabs if slab is not None)
        steps.append(SweepStep(slabs, Span(max(min(held.start, compared), 0), held.stop), compared))
    return steps


def hull(spans: Iterable[Span]) -> Span:
    """From the first plane of any to the last; empty ones do not count."""
    found = [span for span in spans if len(span)]
    return Span(min(s.start for s in found), max(s.stop for s in found)) if found else Span(0, 0)


def sweeps(iterations: int, together: int) -> int:
    """Of a level: its first iteration has one of its own, then each has those up to a multiple of ``together``."""
    return iterations if together == 1 or iterations < 2 else 1 - (-iterations // together)


def staged_planes(height: int, *, on_gpu: bool) -> tuple[int, int, int]:
    """Planes of a field in a staging array, and how many of these are for reading and for writing (``sweep.transfers``)."""
    if on_gpu:
        return height, 2, 2
    each = min(height, PART)
    return each, max(2, -(-min(height, AHEAD) // each)), max(2, BEHIND // each)


def held_planes(height: int, planes: int, reaches: Reaches, iterations: int = 1) -> int:
    """Most planes that buffers of an iteration of a sweep hold at once."""
    ahead = max(reaches.displacement, reaches.direction)
    lag = max(reaches.window + reaches.gradient, reaches.direction)  # of the planes that are stepped
    lent = ahead + reaches.direction if iterations > 1 else 0  # until the next iteration can begin
    return min(planes, height + ahead + max(ahead, 2 * reaches.window, lag + reaches.gradient) + lent)


def spread_planes(reaches: Reaches, iterations: int) -> int:
    """Planes by which the last iteration of a sweep at most is behind the first one."""
    lag = max(reaches.window + reaches.gradient, reaches.direction)
    return (iterations - 1) * (max(reaches.displacement, lag + reaches.direction) + reaches.direction)


def sampled_planes(height: int, stage: Optimised) -> int:
    """Planes of the fixed level, from the first to the last, whose points a step samples."""
    reach = stage.similarity.reach
    if isinstance(stage, Deformable):
        return height + 2 * reach + spread_planes(Reaches.of(stage), stage.iterations_per_sweep)
    return height + 2 * (reach + (reach > 0))  # one more on both sides tells what lies beside filling

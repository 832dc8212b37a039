"""The moving image as the loop reads it, wherever its planes live (method, section 6): all here, those in reach, or on their way.

All give the same bits: a value is the sum of two planes' parts, and each part is computed alike wherever the plane comes from.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending
from daskreg.engine.halo import Movement, collect, finish, receive, send
from daskreg.engine.images import Image
from daskreg.engine.reach import Place, Reach
from daskreg.engine.report import Trace
from daskreg.engine.route import Route
from daskreg.grid import Index, Partition, Span
from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.conversion import narrow
from daskreg.kernels.device import NOWHERE, module_of, synchronise
from daskreg.kernels.sampling.cpu import (
    add_value,
    add_value_and_gradient,
    affine_sums,
    gradient_sums,
    outline,
    pull_back,
    sample,
    turn,
    weigh,
)

Array = NDArray[np.float32]
Sight = tuple[Shape, Place, Array | None]  # box, place and displacement of a look
Results = tuple[Array, Array | None, Array | None]  # moved, weight, gradient
MARGIN = 4  # planes foreseen beyond what is in reach, so that it may grow


def at_once(name: str, launches: Callable[[], None]) -> None:
    """Launch kernels from here."""
    launches()


class Sampler(ABC):
    """Values of the moving image, its mask and its gradient at p(x) = A x + t + S u(x) over a box of the block's planes."""

    keeps_gradient = False  # whether ``look`` needs a buffer for the image's gradient until ``pull_back``

    def __init__(self, planes: int, masked: bool) -> None:
        self.planes, self.masked = planes, masked
        self.play: Callable[[str, Callable[[], None]], None] = at_once  # what a look launches between two messages, by name

    @abstractmethod
    def prepare(self, reach: Reach) -> bool:
        """Be ready for looks that read these planes; all ranks call it with the same. Whether looks now differ."""

    @abstractmethod
    def look(self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None) -> None:
        """``moved``, NaN out of domain; ``weight``, where there is a mask; some of ``g`` is filled where ``keeps_gradient``."""

    @abstractmethod
    def pull_back(
        self, box: Shape, place: Place, u: Array | None, slope: Array, g: NDArray[Any], kept: Array | None = None
    ) -> None:
        """``g``, dC/du as it is stored, from dC/dmoved; ``kept``: what ``look`` filled, where it is not g, to be overwritten."""

    @abstractmethod
    def sums(self, box: Shape, place: Place, slope: Array, g: Array | None) -> Array:
        """Row sums (6, Z, Y) behind dC/dA and dC/dt, without displacement; ``g``: what ``look`` filled."""


class Resident(Sampler):
    """``replicate``: every plane is here; and what a window does with the planes it has."""

    def __init__(self, image: Array, mask: Array | None, planes: int, origin: int = 0) -> None:
        super().__init__(planes, mask is not None)
        self.image, self.mask, self.origin = image, mask, origin

    def prepare(self, reach: Reach) -> bool:
        """Nothing is missing."""
        return False

    def look(self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None) -> None:
        """One pass an image."""
        sample(box, *place, u, self.origin, self.planes, self.image, moved)
        if self.mask is not None and weight is not None:
            nowhere = module_of(self.mask).empty((0, 0, 0), np.float32) if on_device(self.mask) else NOWHERE
            weigh(box, *place, u, self.origin, nowhere, self.mask, weight)

    def pull_back(
        self, box: Shape, place: Place, u: Array | None, slope: Array, g: NDArray[Any], kept: Array | None = None
    ) -> None:
        """Looks at the image again: cheaper than to keep its gradient."""
        pull_back(box, *place, u, self.origin, self.image, slope, g)

    def sums(self, box: Shape, place: Place, slope: Array, g: Array | None) -> Array:
        """In the same pass as the gradient."""
        return affine_sums(box, *place, None, self.origin, self.image, slope)  # type: ignore[no-any-return]


class Window(Resident):
    """The planes that the block can reach and a margin; missing ones come from their owners when the reach leaves it."""

    def __init__(self, image: Array, mask: Array | None, shards: Partition, home: Span, comm: Communicator) -> None:
        rank = comm.rank
        super().__init__(image[:0], None if mask is None else mask[:0], shards.planes)
        self.home = [a[shards[rank].within(home)] for a in (image, mask) if a is not None]
        self.shards, self.comm = shards, comm
        self.windows = [Span(0, 0)] * comm.size

    def prepare(self, reach: Reach) -> bool:
        """Move the windows of the ranks whose reach has left theirs."""
        wanted = [self._moved(old, need) for old, need in zip(self.windows, reach.needs, strict=True)]
        if wanted == self.windows:
            return False
        parts = [self._fetch(a, shard, wanted) for a, shard in zip((self.image, self.mask), self.home, strict=False)]
        self.windows, self.origin = wanted, wanted[self.comm.rank].start
        self.image = parts[0]
        self.mask = parts[1] if len(parts) > 1 else None
        return True

    def _moved(self, window: Span, need: Span) -> Span:
        need = need & Span(0, self.planes) or window or Span(0, 1)  # out of the image too, kernels look at some plane
        return window if need & window == need else need.grow(MARGIN) & Span(0, self.planes)

    def _fetch(self, old: Array | None, shard: Array, wanted: list[Span]) -> Array:
        """The new window: what stays is copied, what lies below and above it comes from its owners."""
        assert old is not None
        rank, owned = self.comm.rank, self.shards.slabs
        mine, before = wanted[rank], self.windows[rank]
        target = module_of(shard).empty((len(mine), *shard.shape[1:]), shard.dtype)
        stays = mine & before
        target[stays.within(mine)] = old[stays.within(before)]
        pending: list[Pending] = []
        for side in (_below, _above):
            lacking = [side(new, new & was) for new, was in zip(wanted, self.windows, strict=True)]
            movement = Movement(self.comm, owned, lacking, "window")
            pending += movement.between([(shard, owned[rank].start)], [(target, mine.start)])
        finish(pending)
        return target  # type: ignore[no-any-return]


def _below(window: Span, stays: Span) -> Span:
    return Span(window.start, stays.start) if len(stays) else window


def _above(window: Span, stays: Span) -> Span:
    return Span(stays.stop, window.stop) if len(stays) else Span(window.stop, window.stop)


class Ring(Sampler):
    """The own shard, like any image at hand, for the planes of the block that read nothing else; for the others shards go round,
    and each rank adds up the parts of value and gradient that lie in the shard at hand.

    At step t a rank sends to the one t places ahead and receives from the one t places behind, only planes that can be reached,
    and not at all where there are none. While one shard is sampled the next is on its way, into the other of two buffers.
    """

    keeps_gradient = True

    def __init__(
        self, image: Array, mask: Array | None, shards: Partition, home: Span, comm: Communicator, trace: Trace | None
    ) -> None:
        super().__init__(shards.planes, mask is not None)
        self.home = [a[shards[comm.rank].within(home)] for a in (image, mask) if a is not None]
        self.own = Resident(self.home[0], self.home[1] if self.masked else None, shards.planes, shards[comm.rank].start)
        self.shards, self.comm, self.trace = shards, comm, trace
        size = (max(shards.lengths), *image.shape[1:])
        empty = module_of(image).empty
        self.buffers = [[empty(size, a.dtype) for a in self.home] for _ in range(2)] if comm.size > 1 else []
        self.route: Route | None = None
        self.reach: Reach | None = None  # that the route is made for
        synchronise(self.home[0])  # it is sent as it lies

    def prepare(self, reach: Reach) -> bool:
        """Who borrows which planes of whom; as before, as long as that is enough."""
        if self.reach is not None and self.reach.covers(reach):
            return False
        self.reach = reach.grown(MARGIN)
        before, self.route = self.route, Route.of(self.reach, self.shards, self.comm.rank)
        return before != self.route

    def look(
        self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None,
        alone: Callable[[Shape], None] | None = None,
    ) -> None:  # fmt: skip
        """One pass round the ring; the planes that read the own shard alone while the first other one is on its way.

        alone: what is done there instead of a look.
        """
        sight = box, place, u
        results = moved, weight if self.masked else None, g
        alone = alone or partial(self.own.look, place=place, u=u, moved=moved, weight=results[1], g=None)
        self.play("ring begins", partial(self._begin, sight, results))
        for source, shard, origin in self._shards():
            start = time.perf_counter()
            self.play(f"ring at {source}", partial(self._visit, source, shard, origin, sight, results, alone))
            self._note("sample", start)

    def apart(self, box: Shape, place: Place) -> list[Shape]:
        """The planes that read other shards than the own."""
        return [*_parts(box, place, self._route.outer)]

    def _begin(self, sight: Sight, results: Results) -> None:
        """What the sums of the outer planes begin with."""
        (box, place, u), (moved, weight, g) = sight, results
        for part in _parts(box, place, self._route.outer):
            outline(part, *place, u, self.planes, self.home[0], moved)
            planes = slice(part[0].start, part[0].stop)
            if g is not None:
                g[:, planes] = 0
            if weight is not None:
                weight[planes] = 0

    def _visit(
        self, source: int, shard: list[Array], origin: int, sight: Sight, results: Results, alone: Callable[[Shape], None]
    ) -> None:
        """All that is to be seen in a rank's shard, whose first plane at hand is ``origin``."""
        (box, place, u), (moved, weight, g) = sight, results
        for part in _parts(box, place, self._route.looking[source]):
            if g is None:
                add_value(part, *place, u, origin, shard[0], moved)
            else:
                add_value_and_gradient(part, *place, u, origin, shard[0], moved, g)
            if weight is not None:
                add_value(part, *place, u, origin, shard[1], weight)
        if source == self.comm.rank:
            for part in _parts(box, place, (self._route.inner,)):
                alone(part)

    def pull_back(
        self, box: Shape, place: Place, u: Array | None, slope: Array, g: NDArray[Any], kept: Array | None = None
    ) -> None:
        """The gradient of the image is there already, except where the own shard is all that is read."""
        for part in _parts(box, place, (self._route.inner,)):
            self.own.pull_back(part, place, u, slope, g)
        self.turn(box, place, slope, g, kept)

    def turn(self, box: Shape, place: Place, slope: Array, g: NDArray[Any], kept: Array | None = None) -> None:
        """``pull_back`` of the planes that read other shards."""
        kept = g if kept is None else kept
        for part in self.apart(box, place):
            turn(part, place[2], slope, kept)
            if kept is not g:
                narrow(part, kept, g)

    def sums(self, box: Shape, place: Place, slope: Array, g: Array | None) -> Array:
        """Likewise, plane by plane."""
        inner, outer = _parts(box, place, (self._route.inner,)), _parts(box, place, self._route.outer)
        found = [(part[0].start, self.own.sums(part, place, slope, None)) for part in inner]
        found += [(part[0].start, gradient_sums(part, slope, g)) for part in outer]
        if not found:
            return gradient_sums(box, slope, g)  # type: ignore[no-any-return]
        rows = [rows for _, rows in sorted(found, key=lambda pair: pair[0])]
        return rows[0] if len(rows) == 1 else module_of(rows[0]).concatenate(rows, axis=1)

    @property
    def _route(self) -> Route:
        assert self.route is not None, "prepare comes first"
        return self.route

    def _shards(self) -> Iterator[tuple[int, list[Array], int]]:
        """Shards in the order of the ring, own first, each with the rank it comes from and the number of its first plane.

        Before one is given out the next is on its way, and what the others wait for is sent a step earlier still.
        """
        me, size = self.comm.rank, self.comm.size
        steps = [t for t in range(1, size) if len(self._route.borrowed[(me - t) % size])]
        due, sends = list(range(1, size)), list[Pending]()
        coming = [self._receive(steps[0], 0)] if steps else []
        self._send(due, steps[1] if len(steps) > 1 else size, sends)
        if len(self.shards[me]):
            yield me, self.home, self.shards[me].start
        for k in range(len(steps)):
            if k + 1 < len(steps):
                if k and self.comm.device_arrays:  # the buffer's last shard may still be read
                    synchronise(self.buffers[0][0])
                coming.append(self._receive(steps[k + 1], k + 1))
            self._send(due, steps[k + 2] if k + 2 < len(steps) else size, sends)
            message, shard, started = coming.pop(0)
            waiting = time.perf_counter()
            message.wait()
            self._note("wait", waiting)
            self._note("transfer", started)
            yield (me - steps[k]) % size, *shard
        finish(sends)

    def _receive(self, t: int, turn: int) -> tuple[Pending, tuple[list[Array], int], float]:
        """Step t's planes, into the buffer whose turn it is."""
        source = (self.comm.rank - t) % self.comm.size
        borrowed = self._route.borrowed[source]
        into = [b[: len(borrowed)] for b in self.buffers[turn % 2]]
        return receive(self.comm, source, into), (into, borrowed.start), time.perf_counter()

    def _send(self, due: list[int], until: int, sends: list[Pending]) -> None:
        """What others want up to a step, in the order of the steps."""
        while due and due[0] <= until:
            target = (self.comm.rank + due.pop(0)) % self.comm.size
            lent = self._route.lent[target]
            if len(lent):
                at = lent.within(self.shards[self.comm.rank])
                sends.append(send(self.comm, target, [a[at] for a in self.home], "ring"))

    def _note(self, name: str, start: float) -> None:
        if self.trace is not None:
            self.trace(name, start, time.perf_counter())


def _parts(box: Shape, place: Place, spans: Sequence[Span]) -> list[tuple[range, int, int]]:
    """What of a kernel's box lies in spans of the level's planes; ``place`` begins with the number of its arrays' first plane."""
    first, planes, ny, nx = whole_box(box)
    here = [Span(place[0] + first, place[0] + first + planes) & s for s in spans]
    return [(range(s.start - place[0], s.stop - place[0]), ny, nx) for s in here if len(s)]


def make_sampler(
    residency: str,
    moving: Image,
    factors: Index,
    shards: Partition,
    comm: Communicator,
    trace: Trace | None = None,
    half: bool = False,
) -> Sampler:
    """The moving image at a level, kept as ``residency`` says; ``half``: as the bits of float16."""
    if comm.size == 1 or residency == "replicate":
        whole = [shards.whole] * comm.size
        image, mask = moving.deliver(factors, whole, comm, half)
        return Resident(image, mask, shards.planes)
    image, mask = moving.deliver(factors, shards.slabs, comm, half)
    home = shards[comm.rank]
    return Window(image, mask, shards, home, comm) if residency == "window" else Ring(image, mask, shards, home, comm, trace)


__all__ = ["Ring", "Sampler", "Window", "collect", "make_sampler"]

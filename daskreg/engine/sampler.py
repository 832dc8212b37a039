"""The moving image as the loop reads it, wherever its planes live (method, section 6): all here, those in reach, or on their way.

All give the same bits: a value is the sum of two planes' parts, and each part is computed alike wherever the plane comes from.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending
from daskreg.engine.halo import Block, Movement, collect, finish, receive, send
from daskreg.engine.images import Image
from daskreg.engine.report import Trace
from daskreg.grid import Index, Partition, Span
from daskreg.kernels.device import NOWHERE, host, module_of, synchronise
from daskreg.kernels.launch import Shape, on_device
from daskreg.kernels.sample import (
    add_value,
    add_value_and_gradient,
    affine_sums,
    gradient_sums,
    outline,
    pull_back,
    sample,
    span,
    turn,
    weigh,
)

Array = NDArray[np.float32]
Place = tuple[int, tuple[np.int64, ...], tuple[np.float32, ...]]  # first plane, A and t, S
MARGIN = 4  # planes a window holds beyond what is in reach


class Sampler(ABC):
    """Values of the moving image, its mask and its gradient at p(x) = A x + t + S u(x) over a box of the block's planes."""

    keeps_gradient = False  # whether ``look`` needs a buffer for the gradient until ``pull_back``

    def __init__(self, planes: int, masked: bool) -> None:
        self.planes, self.masked = planes, masked

    @abstractmethod
    def prepare(self, needs: Sequence[Span]) -> bool:
        """Be ready for looks that read these planes, a span a rank; all ranks call it with the same. Whether looks now differ."""

    @abstractmethod
    def look(self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None) -> None:
        """``moved``, NaN out of domain; ``weight``, where there is a mask; ``g`` is filled where ``keeps_gradient``."""

    @abstractmethod
    def pull_back(self, box: Shape, place: Place, u: Array | None, slope: Array, g: Array) -> None:
        """dC/du from dC/dmoved."""

    @abstractmethod
    def sums(self, box: Shape, place: Place, slope: Array, g: Array | None) -> Array:
        """Row sums (6, Z, Y) behind dC/dA and dC/dt, without displacement."""


class Resident(Sampler):
    """``replicate``: every plane is here; and what a window does with the planes it has."""

    def __init__(self, image: Array, mask: Array | None, planes: int, origin: int = 0) -> None:
        super().__init__(planes, mask is not None)
        self.image, self.mask, self.origin = image, mask, origin

    def prepare(self, needs: Sequence[Span]) -> bool:
        """Nothing is missing."""
        return False

    def look(self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None) -> None:
        """One pass an image."""
        sample(box, *place, u, self.origin, self.planes, self.image, moved)
        if self.mask is not None and weight is not None:
            nowhere = module_of(self.mask).empty((0, 0, 0), np.float32) if on_device(self.mask) else NOWHERE
            weigh(box, *place, u, self.origin, nowhere, self.mask, weight)

    def pull_back(self, box: Shape, place: Place, u: Array | None, slope: Array, g: Array) -> None:
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

    def prepare(self, needs: Sequence[Span]) -> bool:
        """Move the windows of the ranks whose reach has left theirs."""
        wanted = [self._moved(old, need) for old, need in zip(self.windows, needs, strict=True)]
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
    """Shards go round; each rank adds up the parts of value and gradient that lie in the shard at hand.

    At step t a rank sends to the one t places ahead and receives from the one t places behind, only planes that can be reached,
    and not at all where there are none. While one shard is sampled the next is on its way, into the other of two buffers.
    """

    keeps_gradient = True

    def __init__(
        self, image: Array, mask: Array | None, shards: Partition, home: Span, comm: Communicator, trace: Trace | None
    ) -> None:
        super().__init__(shards.planes, mask is not None)
        self.home = [a[shards[comm.rank].within(home)] for a in (image, mask) if a is not None]
        self.shards, self.comm, self.trace = shards, comm, trace
        size = (max(shards.lengths), *image.shape[1:])
        empty = module_of(image).empty
        self.buffers = [[empty(size, a.dtype) for a in self.home] for _ in range(2)] if comm.size > 1 else []
        self.needs: Sequence[Span] = shards.slabs
        synchronise(self.home[0])  # it is sent as it lies

    def prepare(self, needs: Sequence[Span]) -> bool:
        """The table of reachable planes."""
        changed, self.needs = list(needs) != list(self.needs), needs
        return changed

    def look(self, box: Shape, place: Place, u: Array | None, moved: Array, weight: Array | None, g: Array | None) -> None:
        """One pass round the ring."""
        outline(box, *place, u, self.planes, self.home[0], moved)
        planes = slice(box[0].start, box[0].stop) if isinstance(box[0], range) else slice(box[0])
        if g is not None:
            g[:, planes] = 0
        if len(self.home) > 1 and weight is not None:
            weight[planes] = 0
        for shard, origin in self._shards():
            start = time.perf_counter()
            if g is None:
                add_value(box, *place, u, origin, shard[0], moved)
            else:
                add_value_and_gradient(box, *place, u, origin, shard[0], moved, g)
            if len(shard) > 1 and weight is not None:
                add_value(box, *place, u, origin, shard[1], weight)
            self._note("sample", start)

    def pull_back(self, box: Shape, place: Place, u: Array | None, slope: Array, g: Array) -> None:
        """The gradient of the image is in g already."""
        turn(box, place[2], slope, g)

    def sums(self, box: Shape, place: Place, slope: Array, g: Array | None) -> Array:
        """Likewise."""
        return gradient_sums(box, slope, g)  # type: ignore[no-any-return]

    def _shards(self) -> Iterator[tuple[list[Array], int]]:
        """Shards in the order of the ring, own first, each with the number of its first plane.

        Before one is given out the next is on its way, and what the others wait for is sent a step earlier still.
        """
        me, size = self.comm.rank, self.comm.size
        steps = [t for t in range(1, size) if len(self.shards[(me - t) % size] & self.needs[me])]
        due, sends = list(range(1, size)), list[Pending]()
        coming = [self._receive(steps[0], 0)] if steps else []
        self._send(due, steps[1] if len(steps) > 1 else size, sends)
        own = self._part(me)
        if own is not None:
            yield own
        for k in range(len(steps)):
            if k + 1 < len(steps):
                if k and self.comm.direct:  # the buffer's last shard may still be read
                    synchronise(self.buffers[0][0])
                coming.append(self._receive(steps[k + 1], k + 1))
            self._send(due, steps[k + 2] if k + 2 < len(steps) else size, sends)
            message, shard, started = coming.pop(0)
            waiting = time.perf_counter()
            message.wait()
            self._note("wait", waiting)
            self._note("transfer", started)
            yield shard
        finish(sends)

    def _part(self, rank: int) -> tuple[list[Array], int] | None:
        """What of the own shard a rank can reach."""
        mine = self.shards[self.comm.rank]
        reached = mine & self.needs[rank]
        return ([a[reached.within(mine)] for a in self.home], reached.start) if len(reached) else None

    def _receive(self, t: int, turn: int) -> tuple[Pending, tuple[list[Array], int], float]:
        """Step t's planes, into the buffer whose turn it is."""
        source = (self.comm.rank - t) % self.comm.size
        reached = self.shards[source] & self.needs[self.comm.rank]
        into = [b[: len(reached)] for b in self.buffers[turn % 2]]
        return receive(self.comm, source, into), (into, reached.start), time.perf_counter()

    def _send(self, due: list[int], until: int, sends: list[Pending]) -> None:
        """What others want up to a step, in the order of the steps."""
        while due and due[0] <= until:
            target = (self.comm.rank + due.pop(0)) % self.comm.size
            part = self._part(target)
            if part is not None:
                sends.append(send(self.comm, target, part[0], "ring"))

    def _note(self, name: str, start: float) -> None:
        if self.trace is not None:
            self.trace(name, start, time.perf_counter())


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


def affine_needs(place: Place, partition: Partition, shape: Index) -> list[Span]:
    """Planes of the moving image that each rank's slab reads under A x + t: its corners bound it."""
    return [_planes(*_affine_range(place[1], slab, shape)) if len(slab) else Span(0, 0) for slab in partition.slabs]


def _affine_range(affine: tuple[np.int64, ...], slab: Span, shape: Index) -> tuple[float, float]:
    a, b, c, t = (float(v) / 2**32 for v in affine[:4])
    ends = [(a * slab.start, a * (slab.stop - 1)), (0.0, b * (shape[1] - 1)), (0.0, c * (shape[2] - 1))]
    return t + sum(min(e) for e in ends), t + sum(max(e) for e in ends)


def _planes(low: float, high: float) -> Span:
    """The planes on both sides of positions between low and high; a voxel of doubt is added."""
    return Span(math.floor(low) - 1, math.floor(high) + 3)


def displaced_range(block: Block, reach: int, place: Place, u: Array) -> tuple[float, float]:
    """Least and largest p_z over the own planes and ``reach`` around them; (inf, -inf) for an idle rank."""
    rows = host(span(block.box(reach), *place, u))
    return (-float(rows[1].max()), float(rows[0].max())) if rows.size else (math.inf, -math.inf)


def spans(ranges: NDArray[np.float64], slack: float = 0.0) -> list[Span]:
    """Planes for every rank from the table (ranks, 2) of least and largest p_z, widened by ``slack``."""
    return [_planes(low - slack, high + slack) if low <= high else Span(0, 0) for low, high in ranges]


def slack(place: Place, reach: int, step: float) -> float:
    """How far p_z over a block can leave its range over the block and ``reach`` voxels around within one step.

    A step and the smoothing mix displacements of voxels at most ``reach`` away, and add half ``step`` voxels.
    """
    a = sum(abs(float(v)) for v in place[1][:3]) / 2**32
    s = sum(abs(float(v)) for v in place[2][:3])
    return a * reach + s * step / 2


__all__ = ["Ring", "Sampler", "Window", "affine_needs", "collect", "displaced_range", "make_sampler", "slack", "spans"]

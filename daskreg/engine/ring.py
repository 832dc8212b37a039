"""The moving image as a stage samples it where each rank holds a shard of it, and shards pass round (method, section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending, StreamOrdered
from daskreg.engine.halo import receive, send, wait_all
from daskreg.engine.reach import Reach, SamplingMap
from daskreg.engine.report import Trace
from daskreg.engine.ring_schedule import RingSchedule
from daskreg.engine.sampler import REACH_MARGIN, Resident, Sampler
from daskreg.grid import Partition, Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.conversion import encode_bfloat16
from daskreg.kernels.device import module_of, synchronise
from daskreg.kernels.sampling.cpu import (
    CENTERS,
    add_value,
    add_value_and_gradient,
    apply_jacobian_transpose,
    gradient_sums,
    lower_weight,
    mark_domain,
)

Array = NDArray[np.float32]
Points = tuple[Shape, SamplingMap, Array | None]  # box, sampling map and displacement
Outputs = tuple[Array, Array | None, Array | None]  # moved, weight, gradient of the image


class Ring(Sampler):
    """Each rank holds one shard of the image. Planes of the block that read the own shard alone are sampled as from a whole
    image; for the others shards pass round the ring, and a rank accumulates the partial sums of value and gradient that lie in
    each.

    At step t rank r sends to r + t and receives from r - t (modulo the number of ranks) the planes that can be reached, or
    nothing. While one shard is sampled, the next is received into the other of two buffers.
    """

    stores_gradient = True

    def __init__(
        self, image: Array, mask: Array | None, shards: Partition, shard: Span, comm: Communicator, trace: Trace | None
    ) -> None:
        super().__init__(shards.planes, mask is not None)
        self.shard = [a[shards[comm.rank].within(shard)] for a in (image, mask) if a is not None]
        self.own = Resident(self.shard[0], self.shard[1] if self.masked else None, shards.planes, shards[comm.rank].start)
        self.shards, self.comm, self.trace = shards, comm, trace
        size = (max(shards.lengths), *image.shape[1:])
        empty = module_of(image).empty
        self.buffers = [[empty(size, a.dtype) for a in self.shard] for _ in range(2)] if comm.size > 1 else []
        self.schedule: RingSchedule | None = None
        self.reach: Reach | None = None  # that the route is made for
        synchronise(self.shard[0])  # it is sent from where it is

    @property
    def direct(self) -> Resident:
        """The own shard."""
        return self.own

    def prepare(self, reach: Reach) -> bool:
        """Plan which planes go from rank to rank; the last plan stays while it covers the reach."""
        if self.reach is not None and self.reach.covers(reach):
            return False
        self.reach = reach.grown(REACH_MARGIN)
        before, self.schedule = self.schedule, RingSchedule.of(self.reach, self.shards, self.comm.rank)
        return before != self.schedule

    def sample(
        self, box: Shape, mapping: SamplingMap, u: Array | None, moved: Array, weight: Array | None, g: Array | None,
        domain: int = CENTERS, fused: Callable[[Shape], None] | None = None,
    ) -> None:  # fmt: skip
        """One pass round the ring; planes that read the own shard alone are done while the first other shard is received.

        fused: what is launched for these planes instead of sampling.
        """
        points = box, mapping, u
        outputs = moved, weight if self.masked else None, g
        fused = fused or partial(self.own.sample, mapping=mapping, u=u, moved=moved, weight=outputs[1], g=None, domain=domain)
        self.run("ring begins", partial(self._begin, points, outputs, domain))
        for source, shard, origin in self._shards():
            start = time.perf_counter()
            self.run(f"ring at {source}", partial(self._visit, source, shard, origin, points, outputs, fused))
            self._note("sample", start)

    def outer(self, box: Shape, mapping: SamplingMap) -> list[Shape]:
        """The planes of a box that read other shards than the own."""
        return [*_parts(box, mapping, self._planned.outer)]

    def _begin(self, points: Points, outputs: Outputs, domain: int) -> None:
        """Initialise the sums of the outer planes."""
        (box, mapping, u), (moved, weight, g) = points, outputs
        for part in _parts(box, mapping, self._planned.outer):
            mark_domain(part, *mapping, u, self.planes, domain, self.shard[0], moved)
            planes = slice(part[0].start, part[0].stop)
            if g is not None:
                g[:, planes] = 0
            if weight is not None:
                weight[planes] = 1

    def _visit(
        self, source: int, shard: list[Array], origin: int, points: Points, outputs: Outputs, fused: Callable[[Shape], None]
    ) -> None:
        """Accumulate what lies in a rank's shard, whose first plane here is ``origin``."""
        (box, mapping, u), (moved, weight, g) = points, outputs
        for part in _parts(box, mapping, self._planned.sampling[source]):
            if g is None:
                add_value(part, *mapping, u, origin, self.planes, shard[0], moved)
            else:
                add_value_and_gradient(part, *mapping, u, origin, self.planes, shard[0], moved, g)
            if weight is not None:
                lower_weight(part, *mapping, u, origin, self.planes, shard[1], weight)
        if source == self.comm.rank:
            for part in _parts(box, mapping, (self._planned.inner,)):
                fused(part)

    def pull_back(
        self,
        box: Shape,
        mapping: SamplingMap,
        u: Array | None,
        slope: Array,
        g: NDArray[Any],
        image_gradient: Array | None = None,
        fused: Callable[[Shape], None] | None = None,
    ) -> None:
        """The image's gradient was stored by ``sample``, except for planes that read the own shard alone.

        fused: what is launched for these planes instead.
        """
        fused = fused or partial(self.own.pull_back, mapping=mapping, u=u, slope=slope, g=g)
        for part in _parts(box, mapping, (self._planned.inner,)):
            fused(part)
        self.pull_back_outer(box, mapping, slope, g, image_gradient)

    def pull_back_outer(
        self, box: Shape, mapping: SamplingMap, slope: Array, g: NDArray[Any], image_gradient: Array | None = None
    ) -> None:
        """``pull_back`` of the planes that read other shards: dC/du = S^T (dC/dmoved grad M)."""
        image_gradient = g if image_gradient is None else image_gradient
        for part in self.outer(box, mapping):
            apply_jacobian_transpose(part, mapping.linear, slope, image_gradient)
            if image_gradient is not g:
                encode_bfloat16(part, image_gradient, g)

    def sums(self, box: Shape, mapping: SamplingMap, slope: Array, g: Array | None) -> Array:
        """As ``Resident.sums`` for inner planes; from the stored gradient for the others."""
        inner, outer = _parts(box, mapping, (self._planned.inner,)), _parts(box, mapping, self._planned.outer)
        sums = [(part[0].start, self.own.sums(part, mapping, slope, None)) for part in inner]
        sums += [(part[0].start, gradient_sums(part, slope, g)) for part in outer]
        if not sums:
            return gradient_sums(box, slope, g)  # type: ignore[no-any-return]
        rows = [rows for _, rows in sorted(sums, key=lambda pair: pair[0])]
        return rows[0] if len(rows) == 1 else module_of(rows[0]).concatenate(rows, axis=1)

    @property
    def _planned(self) -> RingSchedule:
        assert self.schedule is not None, "call prepare first"
        return self.schedule

    def _shards(self) -> Iterator[tuple[int, list[Array], int]]:
        """Shards in the order of the ring, own first, each with the rank it comes from and the number of its first plane.

        The next receive is posted before a shard is yielded; what other ranks wait for is sent one step earlier still.
        """
        if self.comm.stream_ordered is not None:
            yield from self._ordered(self.comm.stream_ordered)
            return
        me, size = self.comm.rank, self.comm.size
        steps = [t for t in range(1, size) if len(self._planned.received[(me - t) % size])]
        due, sends = list(range(1, size)), list[Pending]()
        coming = [self._receive(steps[0], 0)] if steps else []
        self._send(due, steps[1] if len(steps) > 1 else size, sends)
        if len(self.shards[me]):
            yield me, self.shard, self.shards[me].start
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
        wait_all(sends)

    def _ordered(self, link: StreamOrdered) -> Iterator[tuple[int, list[Array], int]]:
        """``_shards`` by a link that knows the order of a GPU's work: two steps are under way while a shard is sampled."""
        me, size = self.comm.rank, self.comm.size
        coming = [self._step(link, t) for t in range(1, min(size, 3))]
        if len(self.shards[me]):
            yield me, self.shard, self.shards[me].start
        for t in range(1, size):
            message, source, into = coming.pop(0)
            if message is not None:
                message.wait()
            planes = self._planned.received[source]
            if len(planes):
                yield source, into, planes.start
            if t + 2 < size:  # into the buffer that was read just now
                coming.append(self._step(link, t + 2))

    def _step(self, link: StreamOrdered, t: int) -> tuple[Pending | None, int, list[Array]]:
        """What goes to rank + t and comes from rank - t, as one; the latter's rank, and where its planes go."""
        me, size = self.comm.rank, self.comm.size
        target, source = (me + t) % size, (me - t) % size
        sent, received = self._planned.sent[target], self._planned.received[source]
        into = [b[: len(received)] for b in self.buffers[t % 2]]
        at = sent.within(self.shards[me]) if len(sent) else slice(0)
        outgoing = [(target, [a[at] for a in self.shard])] if len(sent) else []
        incoming = [(source, into)] if len(received) else []
        return link.exchange(outgoing, incoming, "ring") if outgoing or incoming else None, source, into

    def _receive(self, t: int, step: int) -> tuple[Pending, tuple[list[Array], int], float]:
        """Receive step t's planes into alternating buffers."""
        source = (self.comm.rank - t) % self.comm.size
        planes = self._planned.received[source]
        into = [b[: len(planes)] for b in self.buffers[step % 2]]
        return receive(self.comm, source, into), (into, planes.start), time.perf_counter()

    def _send(self, due: list[int], until: int, sends: list[Pending]) -> None:
        """Send what other ranks need up to a step, in the order of the steps."""
        while due and due[0] <= until:
            target = (self.comm.rank + due.pop(0)) % self.comm.size
            planes = self._planned.sent[target]
            if len(planes):
                at = planes.within(self.shards[self.comm.rank])
                sends.append(send(self.comm, target, [a[at] for a in self.shard], "ring"))

    def _note(self, name: str, start: float) -> None:
        if self.trace is not None:
            self.trace(name, start, time.perf_counter())


def _parts(box: Shape, mapping: SamplingMap, spans: Sequence[Span]) -> list[tuple[range, int, int]]:
    """What of a kernel's box lies in spans of the level's planes; ``mapping.first`` is the plane its arrays begin with."""
    first, planes, ny, nx = whole_box(box)
    here = [Span(mapping.first + first, mapping.first + first + planes) & s for s in spans]
    return [(range(s.start - mapping.first, s.stop - mapping.first), ny, nx) for s in here if len(s)]

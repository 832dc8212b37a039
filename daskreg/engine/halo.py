"""One rank's part of a level, and planes sent between ranks: planned once from who owns and wants which, run on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending, StreamOrdered
from daskreg.grid import Index, Partition, Span
from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.device import CPU, Device, host, module_of, synchronise

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """The planes a rank owns at a level, and the halo around them that all its arrays hold too, as far as the grid goes."""

    shape: Index  # of the whole level
    partition: Partition
    rank: int = 0
    halo: int = 0
    device: Device = CPU

    @property
    def own(self) -> Span:
        """Planes of the level that are this rank's."""
        return self.partition[self.rank]

    @property
    def held(self) -> Span:
        """Planes of the level that its arrays hold."""
        return self.partition.around(self.rank, self.halo)

    @property
    def first(self) -> int:
        """Plane of the level that is plane 0 of the arrays."""
        return self.held.start

    def box(self, reach: int = 0) -> Shape:
        """For kernels: own planes and ``reach`` around them."""
        return self._planes(self.partition.around(self.rank, reach))

    def edges_first(self, reach: int) -> tuple[list[Shape], list[Shape]]:
        """For kernels: the own planes within ``reach`` of another rank's, which wait for them, and the others."""
        own, whole = self.own, self.partition.whole
        low = min(own.start + reach, own.stop) if own.start > whole.start else own.start
        high = max(own.stop - reach, low) if own.stop < whole.stop else own.stop
        edges = [Span(own.start, low), Span(high, own.stop)]
        return [self._planes(e) for e in edges if len(e)], [self._planes(Span(low, high))] if high > low else []

    def _planes(self, planes: Span) -> Shape:
        return range(planes.start - self.first, planes.stop - self.first), self.shape[1], self.shape[2]

    @property
    def inner(self) -> slice:
        """The own planes of an array."""
        return self.own.within(self.held)

    def around(self, reach: int) -> list[Span]:
        """Every rank's planes and ``reach`` around them."""
        return [self.partition.around(rank, reach) for rank in range(len(self.partition.slabs))]

    def scalar(self) -> Array:
        """An array (planes held, Y, X)."""
        return self.device.xp.empty((len(self.held), *self.shape[1:]), np.float32)  # type: ignore[no-any-return]

    def vector(self, dtype: type = np.float32) -> NDArray[Any]:
        """Zeros (3, planes held, Y, X)."""
        return self.device.xp.zeros((3, len(self.held), *self.shape[1:]), dtype)  # type: ignore[no-any-return]


class Movement:
    """Planes that ranks send each other, from which planes each rank owns and wants.

    All ranks build it from the same tables, so that sender and receiver agree on every message.
    """

    def __init__(self, comm: Communicator, owned: Sequence[Span], wanted: Sequence[Span], purpose: str = "halo") -> None:
        self.comm, self.purpose = comm, purpose
        me = comm.rank
        self.kept = owned[me] & wanted[me]
        self.outgoing = [(r, owned[me] & w) for r, w in enumerate(wanted) if r != me and len(owned[me] & w)]
        self.incoming = [(r, o & wanted[me]) for r, o in enumerate(owned) if r != me and len(o & wanted[me])]

    def start(self, *fields: tuple[Array, int], after: Any = None) -> list[Pending]:
        """Begin to move planes within arrays (.., planes, Y, X), each with the global number of its first plane.

        after: on a GPU, the event behind the kernels that write what is sent and read what is received; None: all kernels.
        """
        return self.between(list(fields), list(fields), after)

    def between(
        self, sources: Sequence[tuple[Array, int]], targets: Sequence[tuple[Array, int]], after: Any = None
    ) -> list[Pending]:
        """Begin to move planes from arrays to others; what a rank gives itself is copied at once."""
        ordered = self.comm.stream_ordered
        if ordered is not None and sources and on_device(sources[0][0]):
            return self._ordered(ordered, sources, targets, after)
        if sources and (self.incoming or self.outgoing):  # UCX reads and writes a GPU's memory whatever still works on it
            synchronise(sources[0][0]) if after is None else after.synchronize()
        pending = [receive(self.comm, r, _planes(targets, span)) for r, span in self.incoming]
        pending += [send(self.comm, r, _planes(sources, span), self.purpose) for r, span in self.outgoing]
        self._keep(sources, targets)
        return pending

    def _ordered(
        self, link: StreamOrdered, sources: Sequence[tuple[Array, int]], targets: Sequence[tuple[Array, int]], after: Any
    ) -> list[Pending]:
        """The same by a link that knows the order of a GPU's work."""
        outgoing = [(r, _planes(sources, span)) for r, span in self.outgoing]
        incoming = [(r, _planes(targets, span)) for r, span in self.incoming]
        pending = [link.exchange(outgoing, incoming, self.purpose, after)] if outgoing or incoming else []
        self._keep(sources, targets)
        return pending

    def _keep(self, sources: Sequence[tuple[Array, int]], targets: Sequence[tuple[Array, int]]) -> None:
        """Copy what this rank gives itself."""
        for source, target in zip(_planes(sources, self.kept), _planes(targets, self.kept)):
            if _address(source) != _address(target):
                target[...] = source


@dataclass
class StagedReceive:
    """A message to a GPU's array that is received in the machine's memory first."""

    message: Pending
    staged: list[Array]
    into: Sequence[Array]
    done: bool = False

    def wait(self) -> None:
        """Until it is on the GPU."""
        if not self.done:
            self.message.wait()
            for array, target in zip(self.staged, self.into, strict=True):
                target[...] = module_of(target).asarray(array)
            self.done = True


def receive(comm: Communicator, source: int, into: Sequence[Array]) -> Pending:
    """Receive arrays, by way of the machine's memory where the link knows no other."""
    if comm.device_arrays or not any(on_device(a) for a in into):
        return comm.receive(source, into)
    staged = [np.empty(a.shape, a.dtype) for a in into]
    return StagedReceive(comm.receive(source, staged), staged, into)


def send(comm: Communicator, to: int, arrays: Sequence[Array], purpose: str) -> Pending:
    """Send arrays that are finished, likewise."""
    return comm.send(to, arrays if comm.device_arrays else [host(a) for a in arrays], purpose)


def _address(array: Array) -> int:
    """Where an array begins."""
    return int(array.data.ptr if on_device(array) else array.ctypes.data)  # type: ignore[attr-defined]


def wait_all(pending: list[Pending]) -> None:
    """Wait for all messages, and empty the list."""
    while pending:
        pending.pop(0).wait()


def _planes(fields: Sequence[tuple[Array, int]], span: Span) -> list[Array]:
    """Contiguous pieces: a component's planes are."""
    parts: list[Array] = []
    for array, first in fields:
        at = slice(span.start - first, span.stop - first)
        parts += [array[at]] if array.ndim == 3 else [component[at] for component in array]
    return parts


def gather_planes(
    comm: Communicator, owned: Sequence[Span], wanted: Sequence[Span], source: Array, first: int, purpose: str
) -> Array:
    """The wanted planes of an array that is spread over the ranks; ``first``: global number of the source's first plane."""
    mine = wanted[comm.rank]
    target = module_of(source).empty((*source.shape[:-3], len(mine), *source.shape[-2:]), source.dtype)
    wait_all(Movement(comm, owned, wanted, purpose).between([(source, first)], [(target, mine.start)]))
    return target  # type: ignore[no-any-return]

"""The communicator of a rank: messages between two ranks, and collective operations of all of them.

Messages between two ranks arrive in the order in which they were sent. Messages carry no tag: sender and receiver derive every
exchange from the same plan. Every wait has a deadline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.comm.timeouts import Timeouts

Arrays = Sequence[NDArray[Any]]
DIRECT_RANKS = 4  # up to so many ranks gather in a single round


class Pending(Protocol):
    """A message under way; its arrays must not be changed before ``wait`` has returned."""

    def wait(self) -> None:
        """Wait until the arrays are sent, or received. Raises RankLost, and what ``Timeouts.check`` raises."""


class StreamOrdered(Protocol):
    """Messages between GPUs that are ordered on a stream: the host waits for none of them.

    All ranks make the same calls in the same order.  recorder: of when exchanges begin and end, see ``engine.launch_trace``
    """

    recorder: Any

    def exchange(
        self, outgoing: Sequence[tuple[int, Arrays]], incoming: Sequence[tuple[int, Arrays]], purpose: str, after: Any = None
    ) -> Pending:
        """Send and receive arrays of GPUs, each contiguous and of one size on both sides, once an event has happened.

        after: None for all that was launched.  ``wait`` of what this returns makes later kernels wait, not the host.
        """

    def combine(self, sums: Any = None, largest: Any = None) -> None:
        """Replace int64 numbers by their sums over the ranks, and float32 numbers by their largest, before later kernels."""

    def wait(self, event: Any) -> None:
        """On the host, until an event has happened. Raises RankLost, and what ``Timeouts.check`` raises."""

    def check(self) -> None:
        """Raise RankLost if a message did not end as it should, so that what was to arrive has not."""

    def close(self) -> None:
        """End all messages, from any thread."""


class Communicator(ABC):
    """One rank's access to the others. Sums have an order that does not depend on the number of ranks.

    names: where each rank runs, for messages;  traffic: bytes sent so far, by purpose;  device_arrays: GPU arrays can be sent as
    they are;  busy_wait: waits may keep a core busy, because a GPU does the work;  shared_gather: a faster ``gather`` through
    shared memory, which returns None where arrays are too large for it (see ``use_shared_memory``);  stream_ordered: for arrays
    of GPUs, see ``use_nccl``.
    """

    device_arrays = busy_wait = False
    shared_gather: Callable[[NDArray[Any]], NDArray[Any] | None] | None = None
    stream_ordered: StreamOrdered | None = None

    def __init__(self, rank: int, names: Sequence[str], timeouts: Timeouts | None = None) -> None:
        self.rank, self.size, self.names = rank, len(names), tuple(names)
        self.timeouts = timeouts or Timeouts()
        self.traffic: Counter[str] = Counter()

    def send(self, to: int, arrays: Arrays, purpose: str = "other") -> Pending:
        """Send arrays, each C-contiguous, as one message."""
        self.traffic[purpose] += sum(a.nbytes for a in arrays)
        return self._send(to, arrays)

    @abstractmethod
    def _send(self, to: int, arrays: Arrays) -> Pending: ...

    @abstractmethod
    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source`` into arrays, each C-contiguous, of the sent shapes and dtypes."""

    @abstractmethod
    def check(self, peer: int) -> None:
        """Raise RankLost if the connection to a rank is known to be lost."""

    def exchange(self, outgoing: Sequence[tuple[int, Arrays]], incoming: Sequence[tuple[int, Arrays]], purpose: str) -> None:
        """Send and receive at once, and wait for all of it."""
        pending = [self.receive(source, arrays) for source, arrays in incoming]
        pending += [self.send(to, arrays, purpose) for to, arrays in outgoing]
        for message in pending:
            message.wait()

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of one shape from all ranks, stacked by rank, on every rank."""
        if self.stream_ordered is None:
            return self._gather(array)
        self.stream_ordered.check()  # nothing is agreed on from what did not arrive
        try:
            return self._gather(array)
        except BaseException:  # kernels that wait for a lost rank would keep what frees their memory waiting
            self.stream_ordered.close()
            raise

    def _gather(self, array: NDArray[Any]) -> NDArray[Any]:
        if self.shared_gather is not None and (gathered := self.shared_gather(array)) is not None:
            self.traffic["sum"] += (self.size - 1) * array.nbytes
            return gathered
        return self._gather_directly(array) if self.size <= DIRECT_RANKS else self._gather_in_rounds(array)

    def _gather_directly(self, array: NDArray[Any]) -> NDArray[Any]:
        """Every rank sends to every other at once."""
        blocks = np.empty((self.size, *array.shape), array.dtype)
        blocks[self.rank] = array
        own = np.ascontiguousarray(array)
        others = [r for r in range(self.size) if r != self.rank]
        self.exchange([(r, [own]) for r in others], [(r, [blocks[r, ...]]) for r in others], "sum")
        return blocks

    def _gather_in_rounds(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bruck's algorithm: ceil(log2 size) rounds, in each of which a rank sends all that it has."""
        blocks = np.empty((self.size, *array.shape), array.dtype)
        blocks[0] = array
        held = 1
        while held < self.size:
            n = min(held, self.size - held)
            self.exchange(
                [((self.rank - held) % self.size, [blocks[:n]])],
                [((self.rank + held) % self.size, [blocks[held : held + n]])],
                "sum",
            )
            held += n
        return np.roll(blocks, self.rank, axis=0)

    def sum_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sum integers over the ranks, exactly."""
        return np.asarray(self.gather(counts).sum(axis=0))

    def sum_planes(self, planes: NDArray[np.float64], planes_of: Sequence[int]) -> NDArray[np.float64]:
        """Sum over all planes of the global grid, in their order: (k, planes of this rank) -> (k,).

        planes_of: number of planes of each rank.
        """
        if self.size == 1:
            return np.asarray(np.ascontiguousarray(planes).sum(axis=1))
        padded = np.zeros((planes.shape[0], max(planes_of)))
        padded[:, : planes.shape[1]] = planes
        parts = [part[:, :n] for part, n in zip(self.gather(padded), planes_of, strict=True)]
        return np.asarray(np.ascontiguousarray(np.concatenate(parts, axis=1)).sum(axis=1))

    def max(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Element-wise maximum over the ranks."""
        return np.asarray(self.gather(values).max(axis=0))

    def broadcast(self, array: NDArray[Any]) -> NDArray[Any]:
        """Rank 0's array on every rank; the others pass one of its shape and dtype."""
        return np.asarray(self.gather(array)[0])

    def barrier(self) -> None:
        """Return once every rank has called this."""
        self.gather(np.zeros(1, np.uint8))


class _NoPeer:
    def wait(self) -> None:
        raise AssertionError("a single rank has no other to exchange messages with")


class SingleRank(Communicator):
    """The communicator of a run with one rank: nothing is sent, nothing is waited for."""

    def __init__(self) -> None:
        super().__init__(0, ("here",))

    def _send(self, to: int, arrays: Arrays) -> Pending:
        return _NoPeer()

    def check(self, peer: int) -> None:
        """Return: there is no other rank."""

    def receive(self, source: int, into: Arrays) -> Pending:
        """Return a message that cannot be waited for: there is no other rank."""
        return _NoPeer()

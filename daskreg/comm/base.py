"""How ranks meet: messages between two of them, and what all of them need of each other.

Messages between two ranks arrive in the order in which they were sent, and nothing else orders them: both sides of every exchange
follow from the same plan, so that no message carries a name. Every wait has a deadline.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import RankLost

if TYPE_CHECKING:
    from daskreg.comm.board import Board

Arrays = Sequence[NDArray[Any]]
KEEN = 0.02  # seconds for which a wait may occupy a core, where that takes nobody's
FEW = 4  # ranks whose sums take a single round
POLL = 0.05  # seconds between two looks at whether the run was stopped


class Pending(Protocol):
    """A message under way; its arrays must not be touched before ``wait`` has returned."""

    def wait(self) -> None:
        """Until the arrays are sent (and may be changed), or received. Raises RankLost, and what ``Patience.check`` raises."""


@dataclass
class Patience:
    """How long a rank waits for another, and what it does meanwhile.

    deadline: seconds after which a silent rank counts as lost;  notice: seconds after which a slow one is reported, once a wait;
    check: called while waiting, raises when the run was stopped;  slow: told the rank waited for and the seconds so far.
    """

    deadline: float = 600.0
    notice: float = 10.0
    check: Callable[[], None] = lambda: None
    slow: Callable[[int, float], None] = lambda rank, seconds: None

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """Wait as long as it takes: another rank works alone, and its death would be noticed elsewhere."""
        kept = self.deadline, self.notice
        self.deadline = self.notice = math.inf
        try:
            yield
        finally:
            self.deadline, self.notice = kept

    def wait(self, ready: Callable[[float], bool], peer: int, name: str) -> None:
        """Call ``ready(seconds)``, which blocks at most that long, until it is true. Raises RankLost naming the peer."""
        if ready(POLL):
            return
        start, noticed = time.monotonic() - POLL, False
        while not ready(POLL):
            self.check()
            waited = time.monotonic() - start
            if waited > self.deadline:
                raise RankLost(f"rank {peer} ({name}) was silent for {waited:.0f} s; look at that worker's log, then run again.")
            if waited > self.notice and not noticed:
                noticed = True
                self.slow(peer, waited)


class Communicator(ABC):
    """One rank's access to the others; every sum has an order that does not depend on how many there are.

    names: where each rank is, for messages;  traffic: bytes sent so far, by purpose;  direct: arrays of a GPU can be given as
    they are;  keen: waiting may occupy a core, where a GPU does the work;  board: where ranks of one machine sum, see ``share``.
    """

    direct = keen = False
    board: Board | None = None

    def __init__(self, rank: int, names: Sequence[str], patience: Patience | None = None) -> None:
        self.rank, self.size, self.names = rank, len(names), tuple(names)
        self.patience = patience or Patience()
        self.traffic: Counter[str] = Counter()

    def send(self, to: int, arrays: Arrays, purpose: str = "other") -> Pending:
        """Send arrays, each C-contiguous, as one message."""
        self.traffic[purpose] += sum(a.nbytes for a in arrays)
        return self._send(to, arrays)

    @abstractmethod
    def _send(self, to: int, arrays: Arrays) -> Pending: ...

    @abstractmethod
    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source`` into arrays, each C-contiguous, of the sent shapes and types."""

    @abstractmethod
    def check(self, peer: int) -> None:
        """Raise RankLost where it is known already that no more will come from a rank."""

    def exchange(self, outgoing: Sequence[tuple[int, Arrays]], incoming: Sequence[tuple[int, Arrays]], purpose: str) -> None:
        """Send and receive at once, and wait for all of it."""
        pending = [self.receive(source, arrays) for source, arrays in incoming]
        pending += [self.send(to, arrays, purpose) for to, arrays in outgoing]
        for message in pending:
            message.wait()

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of one shape from all ranks, stacked by rank, on every rank.

        Few ranks send to each other at once; more take Bruck's algorithm, in log2 of size rounds.
        """
        if self.board is not None and (table := self.board.gather(array)) is not None:
            self.traffic["sum"] += (self.size - 1) * array.nbytes
            return table
        blocks = np.empty((self.size, *array.shape), array.dtype)
        if self.size <= FEW:
            others = [r for r in range(self.size) if r != self.rank]
            blocks[self.rank] = array
            mine = np.ascontiguousarray(array)
            self.exchange([(r, [mine]) for r in others], [(r, [blocks[r, ...]]) for r in others], "sum")
            return blocks
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

        planes_of: how many planes each rank has.
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
        """Rank 0's array on every rank; the others give one of its shape and type."""
        return np.asarray(self.gather(array)[0])

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.gather(np.zeros(1, np.uint8))


class _Never:
    def wait(self) -> None:
        raise AssertionError("a rank that is alone has nobody to talk to")


class Alone(Communicator):
    """A run of one rank: the same loop, nobody to wait for."""

    def __init__(self) -> None:
        super().__init__(0, ("here",))

    def _send(self, to: int, arrays: Arrays) -> Pending:
        return _Never()

    def check(self, peer: int) -> None:
        """Nobody is lost."""

    def receive(self, source: int, into: Arrays) -> Pending:
        """Nobody sends."""
        return _Never()

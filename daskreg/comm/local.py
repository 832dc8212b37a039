"""Ranks that are threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from daskreg.comm.base import Arrays, Communicator, Patience, Pending
from daskreg.comm.mailbox import Mailbox, dropped


class _Room:
    """The threads of one run: a mailbox for every ordered pair, and the failures in the order in which they happened."""

    def __init__(self, size: int, patience: Patience) -> None:
        self.names = [f"thread {r}" for r in range(size)]
        self.threads = [Thread(r, self, replace(patience)) for r in range(size)]
        self.boxes = {(s, t.rank): Mailbox(s, self.names[s], t.patience) for s in range(size) for t in self.threads}
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()

    def fail(self, rank: int, error: BaseException) -> None:
        """Stop everybody, whomever they wait for: nobody can finish without this rank."""
        with self._lock:
            self.failures.append(error)
            for box in self.boxes.values():
                box.lose(dropped(rank, self.names[rank], f"{type(error).__name__}: {error}"))

    def leave(self, rank: int) -> None:
        """This rank sends no more."""
        for (source, _), box in self.boxes.items():
            if source == rank:
                box.lose(dropped(rank, self.names[rank], "it ended without sending what was waited for"))


class _Sent:
    def wait(self) -> None:
        """Return: the arrays were copied."""


class Thread(Communicator):
    """A rank that is a thread; sending copies."""

    def __init__(self, rank: int, room: _Room, patience: Patience) -> None:
        super().__init__(rank, room.names, patience)
        self.room = room

    def _send(self, to: int, arrays: Arrays) -> Pending:
        self.room.boxes[self.rank, to].post([a.copy() for a in arrays])
        return _Sent()

    def check(self, peer: int) -> None:
        """Raise RankLost where a thread has ended."""
        self.room.boxes[peer, self.rank].check()

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``."""
        return self.room.boxes[source, self.rank].expect(into)


def together(size: int, patience: Patience | None = None) -> list[Communicator]:
    """Communicators of ``size`` ranks, each for a thread of its own."""
    return list(_Room(size, patience or Patience()).threads)


def run(size: int, function: Callable[[Communicator], Any], *, patience: Patience | None = None) -> list[Any]:
    """Call ``function(communicator)`` in ``size`` threads: what each returned, by rank.

    When one fails all stop, and its exception is raised once they have.
    """
    room = _Room(size, patience or Patience())

    def part(comm: Communicator) -> Any:
        try:
            return function(comm)
        except BaseException as error:
            room.fail(comm.rank, error)
            raise
        finally:
            room.leave(comm.rank)

    with ThreadPoolExecutor(size, "rank") as pool:
        futures = [pool.submit(part, comm) for comm in room.threads]
    if room.failures:
        raise room.failures[0]
    return [f.result() for f in futures]

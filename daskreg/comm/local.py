"""Ranks that are threads of one process, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from daskreg.comm.base import Arrays, Communicator, Pending
from daskreg.comm.message_queue import MessageQueue, lost_message
from daskreg.comm.timeouts import Timeouts


class _ThreadGroup:
    """The threads of one run: a queue for every ordered pair, and the failures in the order in which they happened."""

    def __init__(self, size: int, timeouts: Timeouts) -> None:
        self.names = [f"thread {r}" for r in range(size)]
        self.threads = [ThreadCommunicator(r, self, replace(timeouts)) for r in range(size)]
        self.queues = {(s, t.rank): MessageQueue(s, self.names[s], t.timeouts) for s in range(size) for t in self.threads}
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()

    def fail(self, rank: int, error: BaseException) -> None:
        """End every wait, whichever rank it is for: no rank can finish without this one."""
        with self._lock:
            self.failures.append(error)
            for queue in self.queues.values():
                queue.fail(lost_message(rank, self.names[rank], f"{type(error).__name__}: {error}"))

    def leave(self, rank: int) -> None:
        """This rank sends no more."""
        for (source, _), queue in self.queues.items():
            if source == rank:
                queue.fail(lost_message(rank, self.names[rank], "it ended without sending what was waited for"))


class _Sent:
    def wait(self) -> None:
        """Return: the arrays were copied."""


class ThreadCommunicator(Communicator):
    """A rank that is a thread; sending copies."""

    def __init__(self, rank: int, group: _ThreadGroup, timeouts: Timeouts) -> None:
        super().__init__(rank, group.names, timeouts)
        self.group = group

    def _send(self, to: int, arrays: Arrays) -> Pending:
        self.group.queues[self.rank, to].put([a.copy() for a in arrays])
        return _Sent()

    def check(self, peer: int) -> None:
        """Raise RankLost if a thread has ended."""
        self.group.queues[peer, self.rank].check()

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``."""
        return self.group.queues[source, self.rank].receive(into)


def communicators(size: int, timeouts: Timeouts | None = None) -> list[Communicator]:
    """Communicators of ``size`` ranks, each for a thread of its own."""
    return list(_ThreadGroup(size, timeouts or Timeouts()).threads)


def run(size: int, function: Callable[[Communicator], Any], *, timeouts: Timeouts | None = None) -> list[Any]:
    """Call ``function(communicator)`` in ``size`` threads: what each returned, by rank.

    When one fails all stop, and its exception is raised once they have.
    """
    group = _ThreadGroup(size, timeouts or Timeouts())

    def run_rank(comm: Communicator) -> Any:
        try:
            return function(comm)
        except BaseException as error:
            group.fail(comm.rank, error)
            raise
        finally:
            group.leave(comm.rank)

    with ThreadPoolExecutor(size, "rank") as pool:
        futures = [pool.submit(run_rank, comm) for comm in group.threads]
    if group.failures:
        raise group.failures[0]
    return [f.result() for f in futures]

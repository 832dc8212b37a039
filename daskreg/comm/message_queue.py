"""A queue of one sender's messages, numbered in the order in which they arrive."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daskreg.comm.base import Arrays
from daskreg.comm.timeouts import Timeouts
from daskreg.errors import RankLost

CLOSED = "this rank closed its endpoint"


class MessageQueue:
    """Messages of one sender that were not received yet.

    The n-th call of ``receive`` stands for the n-th message, in whatever order these are waited for. Any thread may put and take.
    """

    def __init__(self, peer: int, name: str, timeouts: Timeouts) -> None:
        self.peer, self.name, self.timeouts = peer, name, timeouts
        self._messages: dict[int, Sequence[Any]] = {}
        self._put_count = self._receive_count = 0
        self._failure: str | None = None
        self._changed = threading.Condition()

    def put(self, message: Sequence[Any]) -> None:
        """Append the next message."""
        with self._changed:
            self._messages[self._put_count] = message
            self._put_count += 1
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """No more messages will come: every wait for one that is not here raises RankLost with the first reason given."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise RankLost if no more messages will come."""
        with self._changed:
            if self._failure is not None:
                raise RankLost(self._failure)

    def receive(self, into: Arrays) -> PendingReceive:
        """Receive the next message that was not asked for yet."""
        self._receive_count += 1
        return PendingReceive(self, self._receive_count - 1, into)

    def ready(self, number: int, seconds: float) -> bool:
        """Whether a message arrived within so many seconds. Raises RankLost."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._messages or self._failure is not None, seconds)
            if number not in self._messages and self._failure is not None:
                raise RankLost(self._failure)
            return number in self._messages

    def take(self, number: int) -> Sequence[Any]:
        """Remove and return a message that has arrived."""
        with self._changed:
            return self._messages.pop(number)


@dataclass
class PendingReceive:
    """A message that was asked for, and the arrays it is copied to."""

    queue: MessageQueue
    number: int
    into: Arrays
    done: bool = False

    def wait(self) -> None:
        """Wait until the message has arrived, then copy it."""
        if self.done:
            return
        self.queue.timeouts.wait(lambda seconds: self.queue.ready(self.number, seconds), self.queue.peer, self.queue.name)
        copy_message(self.queue.take(self.number), self.into, f"rank {self.queue.peer} ({self.queue.name})")
        self.done = True


def copy_message(message: Sequence[Any], into: Arrays, sender: str) -> None:
    """Copy a message's arrays to their destinations. Raises ValueError when the two sides do not agree on shapes and dtypes."""
    received, expected = ([(tuple(a.shape), str(a.dtype)) for a in arrays] for arrays in (message, into))
    if received != expected:
        raise ValueError(
            f"{sender} sent arrays {received} where {expected} were expected: both sides must run the same plan and version."
        )
    for array, target in zip(message, into, strict=True):
        target[...] = array


def lost_message(peer: int, name: str, cause: object) -> str:
    """The text of RankLost for a broken connection."""
    return f"rank {peer} ({name}) was lost: {cause}; look at that worker's log, then run again."

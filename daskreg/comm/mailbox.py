"""Messages of one sender, numbered as they come, for whoever holds the number."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daskreg.comm.base import Arrays, Patience
from daskreg.errors import RankLost

CLOSED = "this rank closed its port"


class Mailbox:
    """What one sender sent, until it is fetched.

    The n-th receipt stands for the n-th message, in whatever order the receipts are waited for. Any thread may post and fetch.
    """

    def __init__(self, peer: int, name: str, patience: Patience) -> None:
        self.peer, self.name, self.patience = peer, name, patience
        self._messages: dict[int, Sequence[Any]] = {}
        self._posted = self._asked = 0
        self._lost: str | None = None
        self._changed = threading.Condition()

    def post(self, message: Sequence[Any]) -> None:
        """Put the next message."""
        with self._changed:
            self._messages[self._posted] = message
            self._posted += 1
            self._changed.notify_all()

    def lose(self, reason: str) -> None:
        """Nothing more will come: every wait for a message that is not here raises RankLost with the first reason given."""
        with self._changed:
            self._lost = self._lost or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise RankLost where nothing more will come."""
        with self._changed:
            if self._lost is not None:
                raise RankLost(self._lost)

    def expect(self, into: Arrays) -> Receipt:
        """Ask for the next message nobody asked for."""
        self._asked += 1
        return Receipt(self, self._asked - 1, into)

    def ready(self, number: int, seconds: float) -> bool:
        """Whether a message came within so many seconds. Raises RankLost."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._messages or self._lost is not None, seconds)
            if number not in self._messages and self._lost is not None:
                raise RankLost(self._lost)
            return number in self._messages

    def fetch(self, number: int) -> Sequence[Any]:
        """Take a message that is there."""
        with self._changed:
            return self._messages.pop(number)


@dataclass
class Receipt:
    """A message to come, and where it goes."""

    box: Mailbox
    number: int
    into: Arrays
    done: bool = False

    def wait(self) -> None:
        """Until it is here; copies it."""
        if self.done:
            return
        self.box.patience.wait(lambda seconds: self.box.ready(self.number, seconds), self.box.peer, self.box.name)
        deliver(self.box.fetch(self.number), self.into, f"rank {self.box.peer} ({self.box.name})")
        self.done = True


def deliver(message: Sequence[Any], into: Arrays, sender: str) -> None:
    """Copy a message's arrays into those it was meant for. Raises ValueError when both sides do not agree on shapes and types."""
    came, meant = ([(tuple(a.shape), str(a.dtype)) for a in arrays] for arrays in (message, into))
    if came != meant:
        raise ValueError(
            f"{sender} sent arrays {came} where {meant} were expected: both sides must run the same plan and version."
        )
    for array, target in zip(message, into, strict=True):
        target[...] = array


def dropped(peer: int, name: str, cause: object) -> str:
    """How a broken connection is told."""
    return f"rank {peer} ({name}) was lost: {cause}; look at that worker's log, then run again."

"""Ranks of several processes, over UCX: shared memory on one machine, the fastest link between two, GPU memory as it is.

Each run has a UCX worker of its own in each process, so that nothing of another run, or of Dask's own use of UCX, can reach it.
UCX's progress thread needs no GIL and sleeps while nothing happens (waking a hundred times a second: 0.7 % of a core).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm.base import KEEN, Arrays, Communicator, Patience, Pending
from daskreg.comm.mailbox import CLOSED, dropped
from daskreg.errors import RankLost

# read when UCX is loaded, which otherwise warns, on every worker, of a variable that ucxx sets itself
os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")

import ucxx  # noqa: F401  loads the library that the binding needs
from ucxx._lib import libucxx as ucx
from ucxx._lib.arr import Array as Buffer

PACKED = 1 << 20  # bytes; several arrays of fewer in all travel as one
SPINS = 20  # times that the waiting thread drives UCX itself, before it leaves that to the progress thread and sleeps
NAPS = 5e-5, 5e-4  # seconds, the first and the longest sleep between two looks
WAKE = 10  # milliseconds after which the progress thread looks by itself, should it miss an event
GOODBYE = 500_000_000  # nanoseconds for each step of a closing; a dead peer answers none


@cache
def _context() -> Any:
    """One for the process.

    Without CMA, unless the environment says which transports: it copies out of another process, and where that has been killed
    UCX aborts this one too.
    """
    chosen = {} if "UCX_TLS" in os.environ else {"TLS": "^cma"}
    return ucx.UCXContext(chosen, feature_flags=(ucx.Feature.TAG, ucx.Feature.WAKEUP))


def usable() -> bool:
    """Whether UCX finds what it needs on this machine."""
    try:
        _context()
    except (ucx.UCXError, RuntimeError):
        return False
    return True


class _Packs:
    """Buffers for packed messages, kept for the next ones: memory that UCX knows is the fastest."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> NDArray[np.uint8]:
        """The smallest free one of at least ``size`` bytes, or a new one in place of the largest."""
        for i, pack in enumerate(self._free):
            if pack.nbytes >= size:
                return self._free.pop(i)
        if self._free:
            self._free.pop()
        return np.empty(size, np.uint8)

    def give(self, pack: NDArray[np.uint8]) -> None:
        self._free.append(pack)
        self._free.sort(key=len)


class _Flight:
    """One message under way: its requests, the memory they use, and where packed bytes go when they are here."""

    def __init__(self, comm: Ucx, peer: int, pack: NDArray[np.uint8] | None, into: Arrays = ()) -> None:
        self.comm, self.peer, self.pack, self.into = comm, peer, pack, into
        self.requests: list[Any] = []
        self.memory: list[Any] = []
        self.arrived = False

    def wait(self) -> None:
        """Until all requests are done. Raises RankLost."""
        if self.arrived:
            return
        self.comm.patience.wait(self._ready, self.peer, self.comm.names[self.peer])
        for request in self.requests:
            self.comm.call(self.peer, request.check_error)
        self._unpack()
        self.arrived = True
        self.comm.flying.discard(self)

    def _ready(self, seconds: float) -> bool:
        until = time.monotonic() + KEEN if self.comm.keen else 0.0
        for k in itertools.count():
            if self._done():
                return True
            if k >= SPINS and time.monotonic() > until:
                break
            self.comm.worker.progress()
        end, nap = time.monotonic() + seconds, NAPS[0]
        while not self._done():
            if time.monotonic() > end:
                return False
            self.comm.check(self.peer)
            time.sleep(nap)
            nap = min(1.5 * nap, NAPS[1])
        return True

    def _done(self) -> bool:
        return all(r.completed for r in self.requests)

    def _unpack(self) -> None:
        if self.pack is not None:
            for array, place in _places(self.into, self.pack):
                _bytes(array)[:] = place
            self.comm.packs.give(self.pack)


class Ucx(Communicator):
    """One rank's access to the others, for one thread.

    The work on GPU arrays must be finished before they are sent, and both sides of a message hold it in the same kind of memory.
    Tag: 16 bits of the run, 16 of the source, 32 of the number of the message from there to here.
    """

    direct = True

    def __init__(self, run: str, rank: int, names: Sequence[str], patience: Patience, worker: Any) -> None:
        super().__init__(rank, names, patience)
        self.worker = worker
        self.endpoints: dict[int, Any] = {}
        self.flying: set[_Flight] = set()  # UCX writes to this memory until it is told to stop, even if nobody waits any more
        self.packs = _Packs()
        self.closed = False
        self._run = (zlib.crc32(run.encode()) & 0xFFFF) << 48
        self._sent = [itertools.count() for _ in names]
        self._received = [itertools.count() for _ in names]

    def reach(self, addresses: Sequence[bytes], hosts: Sequence[str]) -> None:
        """Make endpoints.

        Without error handling UCX may use shared memory, and tells nothing of a peer's death; so it is on between machines only.
        """
        for peer, address in enumerate(addresses):
            if peer != self.rank:
                handling = hosts[peer] != hosts[self.rank]
                there = ucx.UCXAddress.create_from_buffer(address)
                self.endpoints[peer] = self.call(peer, self.worker.create_endpoint_from_worker_address, there, handling)

    def call(self, peer: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``, where an error of UCX is the loss of the rank."""
        try:
            return function(*arguments)
        except ucx.UCXError as error:
            cause = CLOSED if self.closed else f"{type(error).__name__} {error}"
        # not within the handler: UCX's error cannot be pickled, and would keep this one from reaching the client
        raise RankLost(dropped(peer, self.names[peer], cause))

    def check(self, peer: int) -> None:
        """Raise RankLost when the connection is known to be broken."""
        if self.closed:
            raise RankLost(dropped(peer, self.names[peer], CLOSED))
        if peer in self.endpoints and not self.endpoints[peer].alive:
            raise RankLost(dropped(peer, self.names[peer], "the connection broke"))

    def _send(self, to: int, arrays: Arrays) -> Pending:
        pieces, pack = self._pieces(arrays)
        if pack is not None:
            for array, place in _places(arrays, pack):
                place[:] = _bytes(array)
        flight = _Flight(self, to, pack)
        return self._start(flight, pieces, self.endpoints[to].tag_send, self._tags(self.rank, self._sent[to]))

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``, without a copy if it is large or a single array."""
        pieces, pack = self._pieces(into)
        flight = _Flight(self, source, pack, into)
        return self._start(flight, pieces, self.endpoints[source].tag_recv, self._tags(source, self._received[source]))

    def _start(self, flight: _Flight, pieces: Sequence[Any], begin: Any, tags: Iterator[Any]) -> _Flight:
        self.check(flight.peer)
        flight.memory = [Buffer(p) for p in pieces]
        self.flying.add(flight)
        for buffer, tag in zip(flight.memory, tags):
            flight.requests.append(self.call(flight.peer, begin, buffer, tag))
        return flight

    def _tags(self, source: int, numbers: Iterator[int]) -> Iterator[Any]:
        return (ucx.UCXXTag(self._run | source << 32 | number & 0xFFFFFFFF) for number in numbers)

    def _pieces(self, arrays: Arrays) -> tuple[Sequence[Any], NDArray[np.uint8] | None]:
        """What UCX sends, alike on both sides: the arrays, or a pack of them (never empty, so that an empty message arrives)."""
        whole = [a for a in arrays if a.nbytes]
        size = sum(a.nbytes for a in whole)
        if len(whole) == 1 or size >= PACKED or any(hasattr(a, "__cuda_array_interface__") for a in whole):
            return whole, None
        pack = self.packs.take(max(size, 1))
        return [pack[: max(size, 1)]], pack


def _places(arrays: Arrays, pack: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Each array that is not empty, with its bytes in a pack."""
    start = 0
    for array in arrays:
        if array.nbytes:
            yield array, pack[start : start + array.nbytes]
            start += array.nbytes


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


class UcxPort:
    """A UCX worker, its progress thread, and an endpoint to every other rank."""

    def __init__(self, run: str, rank: int, names: Sequence[str], patience: Patience) -> None:
        self._worker = ucx.UCXWorker(_context())
        self._worker.start_progress_thread(epoll_timeout=WAKE)
        self.address: bytes = ucx.UCXAddress.create_from_worker(self._worker).tobytes()
        self.communicator = Ucx(run, rank, names, patience, self._worker)

    async def connect(self, addresses: Sequence[bytes], hosts: Sequence[str]) -> None:
        """Make the endpoints. Raises RankLost."""
        await asyncio.to_thread(self.communicator.reach, addresses, hosts)

    async def close(self) -> None:
        """Give up what is under way, say goodbye, stop the progress thread."""
        if not self.communicator.closed:
            self.communicator.closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._worker.cancel_inflight_requests(GOODBYE, 1)
        for endpoint in self.communicator.endpoints.values():
            endpoint.close_blocking(GOODBYE, 1)
        self._worker.stop_progress_thread()
        self.communicator.flying.clear()

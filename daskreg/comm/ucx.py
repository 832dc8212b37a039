"""Ranks in several processes, over UCX: shared memory within a machine, the fastest link between two, GPU arrays as they are.

Each run has its own UCX worker in each process, so that messages of another run, or of Dask, cannot reach it. UCX's progress
thread runs without the GIL and sleeps while nothing happens (it wakes a hundred times a second: 0.7 % of a core).

UCX knows neither encryption nor authentication. Ranks that share a machine's memory therefore use shared memory alone: nothing
listens on a network, and only the user's own processes can open the memory. Ranks of several machines listen on the interface
that the cluster uses. What arrives is taken by its tag alone, and tags follow from the secret of the run: other messages are
never received. Whoever reads the network sees the voxels.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from daskreg.comm.base import Arrays, Communicator, Pending
from daskreg.comm.message_queue import CLOSED, lost_message
from daskreg.comm.secret import Secret
from daskreg.comm.timeouts import SPIN_TIME, Timeouts
from daskreg.errors import RankLost

# read when UCX is loaded, which otherwise warns, on every worker, of a variable that ucxx sets itself
os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")

import ucxx  # noqa: F401  loads the library that the binding needs
from ucxx._lib import libucxx as ucx
from ucxx._lib.arr import Array as Buffer

PACK_BYTES = 1 << 20  # several arrays of fewer bytes in all are sent as one
SPINS = 20  # times that the waiting thread drives UCX itself, before it leaves that to the progress thread and sleeps
POLL_BACKOFF = 5e-5, 5e-4  # seconds, the first and the longest sleep between two checks
PROGRESS_TIMEOUT_MS = 10  # after which the progress thread runs without an event, should it have missed one
CLOSE_TIMEOUT_NS = 500_000_000  # for each step of closing; a dead peer does not answer


# not CMA, which reads from the memory of another process, and where that was killed UCX aborts this one too; not System V's
# memory, which UCX opens to the user's group; where ranks share memory, nothing that reaches over a network
NOT_USED = {False: "^cma,sysv", True: "^cma,sysv,tcp,ib"}
INFINIBAND = Path("/sys/class/infiniband")
RESOURCE = re.compile(r"resource\s+\d+\s*:.*\sflags\s+\S+\s+(\w+)/")  # of a transport, in UCX's description of its context


@cache
def _context(same_memory: bool, devices: str | None = None) -> Any:
    """UCX's context, one for the process and the way its ranks reach each other.

    devices: network devices that UCX may use; ``UCX_TLS`` and ``UCX_NET_DEVICES`` in the environment say otherwise.
    """
    options = {"TLS": NOT_USED[same_memory]} | ({} if same_memory or devices is None else {"NET_DEVICES": devices})
    options = {name: value for name, value in options.items() if f"UCX_{name}" not in os.environ}
    return ucx.UCXContext(options, feature_flags=(ucx.Feature.TAG, ucx.Feature.WAKEUP))


def network_devices(host: str) -> str | None:
    """UCX's names of the interface with an address, and of active InfiniBand ports; None where no interface has it."""
    addresses = {host, *_resolved(host)}
    names = [k for k, found in psutil.net_if_addrs().items() if addresses & {a.address.partition("%")[0] for a in found}]
    states = INFINIBAND.glob("*/ports/*/state")
    ports = [f"{s.parts[-4]}:{s.parts[-2]}" for s in sorted(states) if "ACTIVE" in s.read_text()]
    return ",".join(names[:1] + ports) if names else None


def _resolved(host: str) -> Iterator[str]:
    with suppress(OSError):
        for *_, address in socket.getaddrinfo(host, None):
            yield str(address[0])


def links() -> tuple[str, ...]:
    """Names of UCX's transports in this process, in its order. Raises RuntimeError where UCX does not start."""
    try:
        described = str(_context(same_memory=True).info)
    except ucx.UCXError as error:
        reason = f"{type(error).__name__} {error}"
    else:
        return tuple(dict.fromkeys(RESOURCE.findall(described)))
    raise RuntimeError(reason)  # outside the handler: UCX's error cannot be pickled


class _BufferPool:
    """Buffers for packed messages, kept for reuse: memory that UCX has registered is the fastest."""

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


class _PendingTransfer:
    """One message under way: its requests, the buffers they use, and the arrays that packed bytes are copied to on arrival."""

    def __init__(self, comm: UcxCommunicator, peer: int, pack: NDArray[np.uint8] | None, into: Arrays = ()) -> None:
        self.comm, self.peer, self.pack, self.into = comm, peer, pack, into
        self.requests: list[Any] = []
        self.memory: list[Any] = []
        self.done = False

    def wait(self) -> None:
        """Until all requests are done. Raises RankLost."""
        if self.done:
            return
        self.comm.timeouts.wait(self._ready, self.peer, self.comm.names[self.peer])
        for request in self.requests:
            self.comm.call(self.peer, request.check_error)
        self._unpack()
        self.done = True
        self.comm.pending.discard(self)

    def _ready(self, seconds: float) -> bool:
        until = time.monotonic() + SPIN_TIME if self.comm.busy_wait else 0.0
        for k in itertools.count():
            if self._done():
                return True
            if k >= SPINS and time.monotonic() > until:
                break
            self.comm.worker.progress()
        end, pause = time.monotonic() + seconds, POLL_BACKOFF[0]
        while not self._done():
            if time.monotonic() > end:
                return False
            self.comm.check(self.peer)
            time.sleep(pause)
            pause = min(1.5 * pause, POLL_BACKOFF[1])
        return True

    def _done(self) -> bool:
        return all(r.completed for r in self.requests)

    def _unpack(self) -> None:
        if self.pack is not None:
            for array, part in _parts(self.into, self.pack):
                _bytes(array)[:] = part
            self.comm.pool.give(self.pack)


class UcxCommunicator(Communicator):
    """One rank's access to the others, for one thread.

    The work on GPU arrays must be finished before they are sent, and both sides of a message hold it in the same kind of memory.
    Tag of a message: 64 bits that follow from the secret of the run, both ranks and the message's number between the two.
    """

    device_arrays = True

    def __init__(self, secret: Secret, rank: int, names: Sequence[str], timeouts: Timeouts, worker: Any) -> None:
        super().__init__(rank, names, timeouts)
        self.worker, self.secret = worker, secret
        self.connections: dict[int, Any] = {}
        # UCX writes to their buffers until the requests are cancelled, even if nothing waits for them any more
        self.pending: set[_PendingTransfer] = set()
        self.pool = _BufferPool()
        self.closed = False
        self._sent = [itertools.count() for _ in names]
        self._received = [itertools.count() for _ in names]

    def connect(self, addresses: Sequence[bytes], hosts: Sequence[str]) -> None:
        """Create a UCX endpoint for each other rank.

        Error handling is on between machines only: with it UCX does not use shared memory, without it UCX does not report a
        peer's death.
        """
        for peer, address in enumerate(addresses):
            if peer != self.rank:
                handling = hosts[peer] != hosts[self.rank]
                remote = ucx.UCXAddress.create_from_buffer(address)
                self.connections[peer] = self.call(peer, self.worker.create_endpoint_from_worker_address, remote, handling)

    def call(self, peer: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``. Raises RankLost for any error of UCX."""
        try:
            return function(*arguments)
        except ucx.UCXError as error:
            cause = CLOSED if self.closed else f"{type(error).__name__} {error}"
        # raised outside the handler: UCX's error cannot be pickled, and as its cause would keep RankLost from reaching the client
        raise RankLost(lost_message(peer, self.names[peer], cause))

    def check(self, peer: int) -> None:
        """Raise RankLost if the connection is known to be broken."""
        if self.closed:
            raise RankLost(lost_message(peer, self.names[peer], CLOSED))
        if peer in self.connections and not self.connections[peer].alive:
            raise RankLost(lost_message(peer, self.names[peer], "the connection broke"))

    def _send(self, to: int, arrays: Arrays) -> Pending:
        pieces, pack = self._pieces(arrays)
        if pack is not None:
            for array, part in _parts(arrays, pack):
                part[:] = _bytes(array)
        transfer = _PendingTransfer(self, to, pack)
        return self._start(transfer, pieces, self.connections[to].tag_send, self._tags(self.rank, to, self._sent[to]))

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``, without a copy if it is large or a single array."""
        pieces, pack = self._pieces(into)
        transfer = _PendingTransfer(self, source, pack, into)
        return self._start(
            transfer, pieces, self.connections[source].tag_recv, self._tags(source, self.rank, self._received[source])
        )

    def _start(self, transfer: _PendingTransfer, pieces: Sequence[Any], begin: Any, tags: Iterator[Any]) -> _PendingTransfer:
        self.check(transfer.peer)
        transfer.memory = [Buffer(p) for p in pieces]
        self.pending.add(transfer)
        for buffer, tag in zip(transfer.memory, tags):
            transfer.requests.append(self.call(transfer.peer, begin, buffer, tag))
        return transfer

    def _tags(self, source: int, to: int, numbers: Iterator[int]) -> Iterator[Any]:
        return (ucx.UCXXTag(self.secret.tag(source, to, number)) for number in numbers)

    def _pieces(self, arrays: Arrays) -> tuple[Sequence[Any], NDArray[np.uint8] | None]:
        """What UCX sends, the same on both sides: the arrays, or a packed buffer (never empty: an empty message must arrive)."""
        whole = [a for a in arrays if a.nbytes]
        size = sum(a.nbytes for a in whole)
        if len(whole) == 1 or size >= PACK_BYTES or any(hasattr(a, "__cuda_array_interface__") for a in whole):
            return whole, None
        pack = self.pool.take(max(size, 1))
        return [pack[: max(size, 1)]], pack


def _parts(arrays: Arrays, pack: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Each array that is not empty, with its part of a packed buffer."""
    start = 0
    for array in arrays:
        if array.nbytes:
            yield array, pack[start : start + array.nbytes]
            start += array.nbytes


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)


class UcxEndpoint:
    """A UCX worker, its progress thread, and an endpoint to every other rank.

    host: this machine's address;  same_memory: whether all ranks share the memory of one machine.
    """

    def __init__(
        self, rank: int, names: Sequence[str], timeouts: Timeouts, host: str, secret: Secret, *, same_memory: bool
    ) -> None:
        self._same_memory = same_memory
        self._worker = ucx.UCXWorker(_context(same_memory, None if same_memory else network_devices(host)))
        self._worker.start_progress_thread(epoll_timeout=PROGRESS_TIMEOUT_MS)
        self.address: bytes = ucx.UCXAddress.create_from_worker(self._worker).tobytes()
        self.communicator = UcxCommunicator(secret, rank, names, timeouts, self._worker)

    async def connect(self, addresses: Sequence[bytes], hosts: Sequence[str]) -> None:
        """Create UCX endpoints to the other ranks. Raises RankLost."""
        await asyncio.to_thread(self.communicator.connect, addresses, [""] * len(hosts) if self._same_memory else hosts)

    async def close(self) -> None:
        """Cancel what is under way, close the connections, stop the progress thread."""
        if not self.communicator.closed:
            self.communicator.closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._worker.cancel_inflight_requests(CLOSE_TIMEOUT_NS, 1)
        for connection in self.communicator.connections.values():
            connection.close_blocking(CLOSE_TIMEOUT_NS, 1)
        self._worker.stop_progress_thread()
        self.communicator.pending.clear()

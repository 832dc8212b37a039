"""Ranks in several processes, over Dask's own connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.comm.core import connect, listen
from distributed.comm.tcp import TCP
from distributed.protocol.serialize import to_serialize
from distributed.security import Security

from daskreg.comm.base import Arrays, Communicator, Pending
from daskreg.comm.message_queue import CLOSED, MessageQueue, lost_message
from daskreg.comm.timeouts import Timeouts
from daskreg.errors import RankLost


class _Connection:
    """The connection to one rank. All but the queue belongs to the event loop."""

    def __init__(self, peer: int, name: str, timeouts: Timeouts) -> None:
        self.peer, self.name, self.timeouts = peer, name, timeouts
        self.queue = MessageQueue(peer, name, timeouts)
        self._comm: TCP | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._write_lock = asyncio.Lock()  # asyncio's locks are fair: the order of the calls is kept
        self._failure: str | None = None

    def attach(self, comm: TCP) -> asyncio.Task[None]:
        """Start to read from a connection, once both sides have identified themselves."""
        comm.allow_offload = False  # arrays are sent as they lie in memory: there is nothing to offload
        self._comm = comm
        self._connected.set()
        self._reader = asyncio.create_task(self._read(comm))
        return self._reader

    async def _read(self, comm: TCP) -> None:
        try:
            while True:
                self.queue.put(await comm.read())
        except OSError as error:
            self.fail(error)
        finally:
            self.fail("its messages can no longer be read")

    async def write(self, arrays: Arrays) -> None:
        """Send arrays; they may be changed once this has returned. Raises RankLost."""
        async with self._write_lock:
            await self._connected.wait()
            if self._failure is not None or self._comm is None:
                raise RankLost(self._failure)
            stream = self._comm.stream
            try:
                await self._comm.write([to_serialize(a) for a in arrays])
                if stream is not None:  # until it has written everything, bytes may still lie in the caller's arrays
                    await stream.write(b"")
            except OSError as error:
                self.fail(error)
                raise RankLost(self._failure) from error

    def fail(self, cause: object) -> None:
        """Close the connection, and end every wait for it with RankLost."""
        self._failure = self._failure or lost_message(self.peer, self.name, cause)
        self.queue.fail(self._failure)
        self._connected.set()
        if self._comm is not None:
            self._comm.abort()

    async def close(self) -> None:
        self.fail(CLOSED)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            await asyncio.wait([self._reader])


@dataclass
class _PendingSend:
    """A write under way on the event loop."""

    future: concurrent.futures.Future[None]
    connection: _Connection

    def wait(self) -> None:
        self.connection.timeouts.wait(self._ready, self.connection.peer, self.connection.name)
        self.future.result()

    def _ready(self, seconds: float) -> bool:
        return bool(concurrent.futures.wait([self.future], seconds).done)


class TcpCommunicator(Communicator):
    """One rank's access to the others: used by a thread, while the connections live on the event loop."""

    def __init__(self, rank: int, names: Sequence[str], timeouts: Timeouts) -> None:
        super().__init__(rank, names, timeouts)
        self.loop = asyncio.get_running_loop()
        self.connections = {r: _Connection(r, name, timeouts) for r, name in enumerate(names) if r != rank}

    def _send(self, to: int, arrays: Arrays) -> Pending:
        return _PendingSend(asyncio.run_coroutine_threadsafe(self.connections[to].write(arrays), self.loop), self.connections[to])

    def check(self, peer: int) -> None:
        """Raise RankLost if the connection is broken."""
        self.connections[peer].queue.check()

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``; it is copied by the thread that waits for it."""
        return self.connections[source].queue.receive(into)


class TcpEndpoint:
    """A listener, and one connection to every other rank: the higher rank of a pair connects to the lower."""

    def __init__(self, run: str, rank: int, names: Sequence[str], timeouts: Timeouts, security: Security | None) -> None:
        self.run, self.rank, self.security = run, rank, security or Security()
        self.communicator = TcpCommunicator(rank, names, timeouts)
        self.address = ""
        self._listener: Any = None
        self._closed = False

    @classmethod
    async def open(
        cls, run: str, rank: int, names: Sequence[str], timeouts: Timeouts, host: str, security: Security | None
    ) -> TcpEndpoint:
        """Listen on a free port of ``host``."""
        endpoint = cls(run, rank, names, timeouts, security)
        scheme = "tls" if endpoint.security.require_encryption else "tcp"
        bind = f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}"
        endpoint._listener = await listen(f"{bind}:0", endpoint._accept, **endpoint.security.get_listen_args("worker"))
        endpoint.address = endpoint._listener.contact_address
        return endpoint

    async def _accept(self, comm: TCP) -> None:
        """Accept the connection of a higher rank; the listener closes it when this returns."""
        try:
            handshake = await comm.read()
        except OSError:
            return
        connection = self.communicator.connections.get(handshake.get("rank")) if handshake.get("run") == self.run else None
        if connection is None or self._closed:
            comm.abort()
            return
        await asyncio.wait([connection.attach(comm)])

    async def connect(self, addresses: Sequence[str], hosts: Sequence[str]) -> None:
        """Connect to the lower ranks; the higher ones connect by themselves. Raises RankLost."""
        await _gather_all([self._connect_to(r, addresses[r]) for r in range(self.rank)])

    async def _connect_to(self, peer: int, address: str) -> None:
        connection = self.communicator.connections[peer]
        try:
            comm = await connect(address, **self.security.get_connection_args("worker"))
            await comm.write({"run": self.run, "rank": self.rank})
        except OSError as error:
            connection.fail(error)
            raise RankLost(lost_message(peer, connection.name, error)) from error
        connection.attach(comm)

    async def close(self) -> None:
        """Stop listening, close all connections."""
        self._closed = True
        if self._listener is not None:
            self._listener.stop()
        await _gather_all([connection.close() for connection in self.communicator.connections.values()])


async def _gather_all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run all coroutines to their end, then raise the first failure."""
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result

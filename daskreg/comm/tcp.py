"""Ranks in several processes, over TCP, encrypted where the cluster's connections are.

Connections are streams of Tornado on the worker's event loop. They are not Dask's: those unpickle what they receive, from the
first message on. Here both ends prove first that they know the secret of the run (``secret``), and then send arrays (``wire``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import ssl
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed.comm.addressing import parse_address, parse_host_port, unparse_host_port
from distributed.comm.tcp import set_tcp_timeout
from distributed.security import Security
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.tcpclient import TCPClient
from tornado.tcpserver import TCPServer

from daskreg.comm.base import Arrays, Communicator, Pending
from daskreg.comm.message_queue import CLOSED, MessageQueue, lost_message
from daskreg.comm.secret import Secret
from daskreg.comm.timeouts import Timeouts
from daskreg.comm.wire import read_message, write_message
from daskreg.errors import RankLost

log = logging.getLogger(__name__)
PROOF_TIMEOUT = 10.0  # seconds that a stranger has to prove that it belongs to the run
CLOSE_TIMEOUT = 1.0  # seconds for the reader of a connection to end
RETRY_INTERVAL = 0.1  # seconds between two attempts to connect


class _Connection:
    """The connection to one rank. All but the queue belongs to the event loop."""

    def __init__(self, peer: int, name: str, timeouts: Timeouts) -> None:
        self.peer, self.name, self.timeouts = peer, name, timeouts
        self.queue = MessageQueue(peer, name, timeouts)
        self._stream: IOStream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._write_lock = asyncio.Lock()  # asyncio's locks are fair: the order of the calls is kept
        self._failure: str | None = None

    def attach(self, stream: IOStream) -> asyncio.Task[None]:
        """Start to read from a connection, once both sides have proved who they are."""
        self._stream = stream
        self._connected.set()
        self._reader = asyncio.create_task(self._read(stream))
        return self._reader

    @property
    def attached(self) -> bool:
        """Whether the other rank has connected before."""
        return self._stream is not None

    async def _read(self, stream: IOStream) -> None:
        try:
            while True:
                self.queue.put(await read_message(stream))
        except (OSError, ValueError) as error:
            self.fail(error)
        finally:
            self.fail("its messages can no longer be read")

    async def write(self, arrays: Arrays) -> None:
        """Send arrays; they may be changed once this has returned. Raises RankLost."""
        async with self._write_lock:
            await self._connected.wait()
            if self._failure is not None or self._stream is None:
                raise RankLost(self._failure)
            try:
                await write_message(self._stream, arrays)
            except OSError as error:
                self.fail(error)
                raise RankLost(self._failure) from error

    def fail(self, cause: object) -> None:
        """Close the connection, and end every wait for it with RankLost."""
        self._failure = self._failure or lost_message(self.peer, self.name, cause)
        self.queue.fail(self._failure)
        self._connected.set()
        if self._stream is not None:
            self._stream.close()

    async def close(self) -> None:
        self.fail(CLOSED)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            await asyncio.wait([self._reader], timeout=CLOSE_TIMEOUT)


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


class _Listener(TCPServer):
    """Hands each connection that is made to a rank's endpoint."""

    def __init__(self, endpoint: TcpEndpoint, tls: ssl.SSLContext | None) -> None:
        super().__init__(ssl_options=tls, max_buffer_size=sys.maxsize)
        self.endpoint = endpoint

    async def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Called by Tornado."""
        await self.endpoint.accept(stream, address)


class TcpEndpoint:
    """A listener, and one connection to every other rank: the higher rank of a pair connects to the lower."""

    def __init__(
        self, run: str, rank: int, names: Sequence[str], timeouts: Timeouts, secret: Secret, security: Security | None
    ) -> None:
        self.run, self.rank, self.secret = run, rank, secret
        self.communicator = TcpCommunicator(rank, names, timeouts)
        self.address = ""
        self._tls: ssl.SSLContext | None = security.get_connection_args("worker")["ssl_context"] if security else None
        self._listener = _Listener(self, security.get_listen_args("worker")["ssl_context"] if security else None)
        self._closed = False

    @classmethod
    async def open(
        cls, run: str, rank: int, names: Sequence[str], timeouts: Timeouts, host: str, secret: Secret, security: Security | None
    ) -> TcpEndpoint:
        """Listen on a free port of ``host``; encrypted with ``security``, the worker's."""
        endpoint = cls(run, rank, names, timeouts, secret, security)
        sockets = bind_sockets(0, host)
        endpoint._listener.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        endpoint.address = f"{'tls' if security else 'tcp'}://{unparse_host_port(host, port)}"
        return endpoint

    async def accept(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take the connection of a higher rank; anybody else's is closed without an answer."""
        try:
            _prepare(stream)
            peer = await asyncio.wait_for(self.secret.accept(stream, self.run, self.rank), PROOF_TIMEOUT)
        except OSError as error:
            log.debug("a connection from %s was refused: %s", address, error)
            stream.close()
            return
        connection = self.communicator.connections.get(peer)
        if connection is None or connection.attached or self._closed:
            stream.close()
        else:
            connection.attach(stream)

    async def connect(self, addresses: Sequence[str], hosts: Sequence[str]) -> None:
        """Connect to the lower ranks; the higher ones connect by themselves. Raises RankLost."""
        await _gather_all([self._connect_to(r, addresses[r]) for r in range(self.rank)])

    async def _connect_to(self, peer: int, address: str) -> None:
        connection = self.communicator.connections[peer]
        try:
            stream = await self._reach(address)
            await asyncio.wait_for(self.secret.introduce(stream, self.run, self.rank, peer), PROOF_TIMEOUT)
        except OSError as error:
            connection.fail(error)
            raise RankLost(lost_message(peer, connection.name, error)) from error
        if self._closed:  # in the meantime
            stream.close()
        else:
            connection.attach(stream)

    async def _reach(self, address: str) -> IOStream:
        """A stream to an address, tried until Dask's timeout for connections is over. Raises OSError."""
        host, port = parse_host_port(parse_address(address)[1])
        loop = asyncio.get_running_loop()
        end = loop.time() + parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"), default="seconds")
        while True:
            try:
                opened = TCPClient().connect(host, port, ssl_options=self._tls, max_buffer_size=sys.maxsize)
                stream = await asyncio.wait_for(opened, max(end - loop.time(), RETRY_INTERVAL))
            except OSError as error:
                if isinstance(error, ssl.SSLError) or loop.time() + RETRY_INTERVAL > end:
                    raise  # a certificate does not become valid
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                return _prepare(stream)

    async def close(self) -> None:
        """Stop listening, close all connections."""
        self._closed = True
        self._listener.stop()
        await _gather_all([connection.close() for connection in self.communicator.connections.values()])


def _prepare(stream: IOStream) -> IOStream:
    """A stream that sends small messages at once, and notices a machine that is gone as Dask's do."""
    stream.set_nodelay(True)
    set_tcp_timeout(stream)
    return stream


async def _gather_all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run all coroutines to their end, then raise the first failure."""
    for result in await asyncio.gather(*coroutines, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result

"""Ranks of several processes, over Dask's own connections."""

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

from daskreg.comm.base import Arrays, Communicator, Patience, Pending
from daskreg.comm.mailbox import CLOSED, Mailbox, dropped
from daskreg.errors import RankLost


class _Link:
    """The connection to one rank. All but the mailbox belongs to the event loop."""

    def __init__(self, peer: int, name: str, patience: Patience) -> None:
        self.peer, self.name, self.patience = peer, name, patience
        self.box = Mailbox(peer, name, patience)
        self._comm: TCP | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._turn = asyncio.Lock()  # first come, first served: keeps the order of the calls
        self._lost: str | None = None

    def attach(self, comm: TCP) -> asyncio.Task[None]:
        """Start to read from a connection that both sides know."""
        comm.allow_offload = False  # arrays are sent as they lie in memory: there is nothing to offload
        self._comm = comm
        self._connected.set()
        self._reader = asyncio.create_task(self._read(comm))
        return self._reader

    async def _read(self, comm: TCP) -> None:
        try:
            while True:
                self.box.post(await comm.read())
        except OSError as error:
            self.lose(error)
        finally:
            self.lose("its messages can no longer be read")

    async def write(self, arrays: Arrays) -> None:
        """Send arrays; they may be changed once this has returned. Raises RankLost."""
        async with self._turn:
            await self._connected.wait()
            if self._lost is not None or self._comm is None:
                raise RankLost(self._lost)
            stream = self._comm.stream
            try:
                await self._comm.write([to_serialize(a) for a in arrays])
                if stream is not None:  # until it has written everything, bytes may still lie in the caller's arrays
                    await stream.write(b"")
            except OSError as error:
                self.lose(error)
                raise RankLost(self._lost) from error

    def lose(self, cause: object) -> None:
        """End the connection, and every wait for it."""
        self._lost = self._lost or dropped(self.peer, self.name, cause)
        self.box.lose(self._lost)
        self._connected.set()
        if self._comm is not None:
            self._comm.abort()

    async def close(self) -> None:
        self.lose(CLOSED)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            await asyncio.wait([self._reader])


@dataclass
class _Sending:
    """A write under way on the event loop."""

    future: concurrent.futures.Future[None]
    link: _Link

    def wait(self) -> None:
        self.link.patience.wait(self._ready, self.link.peer, self.link.name)
        self.future.result()

    def _ready(self, seconds: float) -> bool:
        return bool(concurrent.futures.wait([self.future], seconds).done)


class Tcp(Communicator):
    """One rank's access to the others: used by a thread, while the connections live on the event loop."""

    def __init__(self, rank: int, names: Sequence[str], patience: Patience) -> None:
        super().__init__(rank, names, patience)
        self.loop = asyncio.get_running_loop()
        self.links = {r: _Link(r, name, patience) for r, name in enumerate(names) if r != rank}

    def _send(self, to: int, arrays: Arrays) -> Pending:
        return _Sending(asyncio.run_coroutine_threadsafe(self.links[to].write(arrays), self.loop), self.links[to])

    def check(self, peer: int) -> None:
        """Raise RankLost where the connection is broken."""
        self.links[peer].box.check()

    def receive(self, source: int, into: Arrays) -> Pending:
        """Receive the next message from ``source``; it is copied by the thread that waits for it."""
        return self.links[source].box.expect(into)


class TcpPort:
    """A listener, and one connection to every other rank: the higher rank of a pair connects to the lower."""

    def __init__(self, run: str, rank: int, names: Sequence[str], patience: Patience, security: Security | None) -> None:
        self.run, self.rank, self.security = run, rank, security or Security()
        self.communicator = Tcp(rank, names, patience)
        self.address = ""
        self._listener: Any = None
        self._closed = False

    @classmethod
    async def open(
        cls, run: str, rank: int, names: Sequence[str], patience: Patience, host: str, security: Security | None
    ) -> TcpPort:
        """Listen on a free port of ``host``."""
        port = cls(run, rank, names, patience, security)
        scheme = "tls" if port.security.require_encryption else "tcp"
        place = f"{scheme}://[{host}]" if ":" in host else f"{scheme}://{host}"
        port._listener = await listen(f"{place}:0", port._answer, **port.security.get_listen_args("worker"))
        port.address = port._listener.contact_address
        return port

    async def _answer(self, comm: TCP) -> None:
        """Take a higher rank's call; the listener closes the connection when this returns."""
        try:
            hello = await comm.read()
        except OSError:
            return
        link = self.communicator.links.get(hello.get("rank")) if hello.get("run") == self.run else None
        if link is None or self._closed:
            comm.abort()
            return
        await asyncio.wait([link.attach(comm)])

    async def connect(self, addresses: Sequence[str], hosts: Sequence[str]) -> None:
        """Call the lower ranks; the higher ones call by themselves. Raises RankLost."""
        await _all([self._call(r, addresses[r]) for r in range(self.rank)])

    async def _call(self, peer: int, address: str) -> None:
        link = self.communicator.links[peer]
        try:
            comm = await connect(address, **self.security.get_connection_args("worker"))
            await comm.write({"run": self.run, "rank": self.rank})
        except OSError as error:
            link.lose(error)
            raise RankLost(dropped(peer, link.name, error)) from error
        link.attach(comm)

    async def close(self) -> None:
        """Stop listening, end all connections."""
        self._closed = True
        if self._listener is not None:
            self._listener.stop()
        await _all([link.close() for link in self.communicator.links.values()])


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    """Do all of it, then raise what failed first."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result

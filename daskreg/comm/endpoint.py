"""One rank's end of a run's connections: opened, connected and closed on its worker's event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from daskreg.comm.base import Communicator
from daskreg.comm.timeouts import Timeouts

if TYPE_CHECKING:
    from distributed.security import Security

Transport = Literal["tcp", "ucx"]


class Endpoint(Protocol):
    """One rank's end of the connections to all other ranks.

    Every rank opens one, receives the addresses of all, connects, and only then may a thread use the communicator.
    ``close`` may be called at any time and more than once; the other ranks may be dead by then.
    """

    @property
    def address(self) -> Any:
        """What the other ranks need to connect; can be pickled."""

    @property
    def communicator(self) -> Communicator:
        """For the thread that does this rank's work, not for the event loop."""

    async def connect(self, addresses: Sequence[Any], hosts: Sequence[str]) -> None:
        """Connect to the other ranks; hosts: the machine of each, equal where two ranks share one. Raises RankLost."""

    async def close(self) -> None:
        """Close all connections, and end every wait with RankLost."""


async def open_endpoint(
    transport: Transport,
    run: str,
    rank: int,
    names: Sequence[str],
    timeouts: Timeouts,
    host: str,
    *,
    security: Security | None = None,
) -> Endpoint:
    """Open a rank's endpoint.

    run: identifies a run among those that share processes;  names: where each rank runs, for messages;  host: this machine's
    address;  security: the worker's, for TLS over tcp.
    """
    if transport == "tcp":
        from daskreg.comm.tcp import TcpEndpoint

        return await TcpEndpoint.open(run, rank, names, timeouts, host, security)
    # importing ucxx takes two seconds
    from daskreg.comm.ucx import UcxEndpoint

    return UcxEndpoint(run, rank, names, timeouts)


def available_transports() -> tuple[Transport, ...]:
    """The transports that this process can use, fastest first."""
    try:
        from daskreg.comm.ucx import usable
    except (ImportError, OSError):
        return ("tcp",)
    return ("ucx", "tcp") if usable() else ("tcp",)

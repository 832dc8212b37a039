"""Where a rank of another process can be reached: opened, connected and closed on its worker's event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from daskreg.comm.base import Communicator, Patience

if TYPE_CHECKING:
    from distributed.security import Security

Kind = Literal["tcp", "ucx"]


class Port(Protocol):
    """One rank's end of a run's connections.

    Every rank opens one, learns the addresses of all, connects, and only then may a thread use the communicator.
    ``close`` may be called at any time and more than once; the others may be dead by then.
    """

    @property
    def address(self) -> Any:
        """What the others need to reach this rank; can be pickled."""

    @property
    def communicator(self) -> Communicator:
        """For the thread that does this rank's work, not for the event loop."""

    async def connect(self, addresses: Sequence[Any], hosts: Sequence[str]) -> None:
        """Reach the other ranks; hosts: the machine of each, equal where two share one. Raises RankLost."""

    async def close(self) -> None:
        """End all connections, and every wait with RankLost."""


async def open_port(
    kind: Kind, run: str, rank: int, names: Sequence[str], patience: Patience, host: str, *, security: Security | None = None
) -> Port:
    """Open a rank's port.

    run: tells runs apart that share processes;  names: where each rank is, for messages;  host: this machine's address;
    security: the worker's, for TLS over tcp.
    """
    if kind == "tcp":
        from daskreg.comm.tcp import TcpPort

        return await TcpPort.open(run, rank, names, patience, host, security)
    # importing ucxx takes two seconds
    from daskreg.comm.ucx import UcxPort

    return UcxPort(run, rank, names, patience)


def available() -> tuple[Kind, ...]:
    """The kinds of port this process can open, best first."""
    try:
        from daskreg.comm.ucx import usable
    except (ImportError, OSError):
        return ("tcp",)
    return ("ucx", "tcp") if usable() else ("tcp",)

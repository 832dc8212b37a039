"""One rank's end of a run's connections: opened, connected and closed on its worker's event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from daskreg.comm.base import Communicator
from daskreg.comm.secret import Secret
from daskreg.comm.shared_memory import memory_identity
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
    secret: Secret,
    security: Security | None = None,
    same_memory: bool = False,
) -> Endpoint:
    """Open a rank's endpoint.

    run: identifies a run among those that share processes;  names: where each rank runs, for messages;  host: this machine's
    address;  secret: of the run, without which nobody is let in;  security: the worker's, for TLS over tcp, None for none;
    same_memory: whether all ranks share the memory of one machine, so that ucx needs no network.
    """
    if transport == "tcp":
        from daskreg.comm.tcp import TcpEndpoint

        return await TcpEndpoint.open(run, rank, names, timeouts, host, secret, security)
    # importing ucxx takes two seconds
    from daskreg.comm.ucx import UcxEndpoint

    return UcxEndpoint(rank, names, timeouts, host, secret, same_memory=same_memory)


@dataclass(frozen=True)
class Abilities:
    """How a process can communicate.

    transports: that it can use, fastest first;  memory: whose memory it can share (``memory_identity``);  links: UCX's transports
    there, such as ``posix`` and ``cuda_ipc``;  missing: why it has no UCX, empty where it has
    """

    transports: tuple[Transport, ...]
    memory: str
    links: tuple[str, ...] = ()
    missing: str = ""


def abilities() -> Abilities:
    """Those of this process."""
    try:
        links, missing = _ucx_links(), ""
    except ModuleNotFoundError as error:
        links, missing = (), f"{error.name} is not installed"
    except (ImportError, OSError, RuntimeError) as error:
        links, missing = (), " ".join(f"UCX cannot be used ({type(error).__name__}: {error})".split())
    return Abilities(("tcp",) if missing else ("ucx", "tcp"), memory_identity(), links, missing)


def _ucx_links() -> tuple[str, ...]:
    """UCX's transports in this process. Raises ImportError, OSError and RuntimeError where it has no UCX."""
    from daskreg.comm.ucx import links

    return links()


def available_transports() -> tuple[Transport, ...]:
    """The transports that this process can use, fastest first."""
    return abilities().transports

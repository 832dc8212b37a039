"""How ranks communicate."""

from daskreg.comm.base import Communicator, Pending, SingleRank, StreamOrdered
from daskreg.comm.endpoint import Abilities, Endpoint, Transport, abilities, available_transports, open_endpoint
from daskreg.comm.probe import LinkSpeed, measure_link
from daskreg.comm.secret import Secret
from daskreg.comm.shared_memory import use_shared_memory
from daskreg.comm.timeouts import Timeouts

__all__ = [
    "Abilities",
    "Communicator",
    "Endpoint",
    "LinkSpeed",
    "Pending",
    "Secret",
    "SingleRank",
    "StreamOrdered",
    "Timeouts",
    "Transport",
    "abilities",
    "available_transports",
    "measure_link",
    "open_endpoint",
    "use_shared_memory",
]

"""How ranks communicate."""

from daskreg.comm.base import Communicator, Pending, SingleRank
from daskreg.comm.endpoint import Endpoint, Transport, available_transports, open_endpoint
from daskreg.comm.shared_memory import use_shared_memory
from daskreg.comm.timeouts import Timeouts

__all__ = ["Communicator", "Endpoint", "Pending", "SingleRank", "Timeouts", "Transport", "available_transports", "open_endpoint",
           "use_shared_memory"]  # fmt: skip

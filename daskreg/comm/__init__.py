"""How ranks talk to each other."""

from daskreg.comm.base import Alone, Communicator, Patience, Pending
from daskreg.comm.board import share
from daskreg.comm.port import Kind, Port, available, open_port

__all__ = ["Alone", "Communicator", "Kind", "Patience", "Pending", "Port", "available", "open_port", "share"]

"""How ranks talk to each other."""

from daskreg.comm.base import Alone, Communicator

__all__ = ["Alone", "Communicator"]

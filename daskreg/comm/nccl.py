"""Messages between GPUs of one machine by NCCL, ordered on a stream: no rank waits for another on the host.

A rank still needs a communicator for everything else. What UCX or TCP move between two kernels the host has to wait for, twice
or three times an iteration; here it launches the next kernels meanwhile, which a GPU begins when the planes are there.

NCCL sets its connections up over the loopback interface, and accepts whoever knows the run's identifier; planes go from GPU to
GPU, or through memory that the ranks share. A dead peer ends no kernel that waits for it: ``close`` does, from another thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from daskreg.comm.base import Arrays, Communicator, Pending
from daskreg.comm.message_queue import CLOSED, lost_message
from daskreg.errors import RankLost

URGENT = -5  # of a stream: as high as the device knows
POLL = 5e-5  # seconds between two looks at an event
CLOSE_TIMEOUT = 5.0  # seconds
# nothing reaches over a network; NVLink multicast, of no use to sums of a few bytes, takes resources of all of a host's GPUs
SETTINGS = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_NVLS_ENABLE": "0"}


def shortcoming() -> str:
    """Why this process cannot use NCCL; empty where it can."""
    try:
        nccl = _library()
        if nccl.available:
            nccl.get_version()
            return ""
    except Exception as error:  # noqa: BLE001  # CuPy without its libraries, without a driver
        return " ".join(f"NCCL cannot be used ({type(error).__name__}: {error})".split())
    return "CuPy has no NCCL"


def _library() -> Any:
    """CuPy's binding."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from cupy.cuda import nccl

    return nccl


def use_nccl(comm: Communicator) -> None:
    """Exchange GPU arrays by NCCL from now on; all ranks call this, each with its GPU selected. Raises RankLost."""
    if comm.size > 1:
        comm.stream_ordered = NcclLink(comm)


class NcclLink:
    """One rank's access to the GPUs of the others, for one thread: ``base.StreamOrdered``.

    All ranks make the same calls in the same order. Raises RankLost where a peer does not answer while connections are made, and
    after ``close``.
    """

    recorder: Any = None

    def __init__(self, comm: Communicator) -> None:
        import cupy

        self.cupy, self.nccl, self.comm = cupy, _library(), comm
        self._others = [r for r in range(comm.size) if r != comm.rank]
        self.closed = False
        self._calling = threading.Lock()  # held while NCCL is called, so that it is not taken away from a call
        self.stream = cupy.cuda.Stream(non_blocking=True, priority=URGENT)
        self._link = self._connected()
        self._warm_up()

    def _connected(self) -> Any:
        """NCCL's communicator; its making waits for all ranks, and cannot be interrupted."""
        name = self._name()
        device, made = self.cupy.cuda.Device().id, list[Any]()

        def make() -> None:
            try:
                with self.cupy.cuda.Device(device):
                    made.append(self.nccl.NcclCommunicator(self.comm.size, name, self.comm.rank))
            except Exception as error:  # noqa: BLE001  # raised by the thread that waits
                made.append(error)

        thread = threading.Thread(target=make, daemon=True, name="nccl connects")
        thread.start()
        peer = (self.comm.rank + 1) % self.comm.size
        self.comm.timeouts.wait(partial(_ended, thread), peer, self.comm.names[peer])
        if isinstance(made[0], Exception):
            raise self._lost(made[0])
        return made[0]

    def _name(self) -> Any:
        """Rank 0's identifier, bytes or a tuple of numbers, by CuPy's version."""
        message = np.zeros(129, np.uint8)
        if self.comm.rank == 0:
            made = self.nccl.get_unique_id()
            message[0] = isinstance(made, bytes)
            message[1:] = np.frombuffer(made, np.uint8) if message[0] else np.array(made, np.int8).view(np.uint8)
        found = self.comm.broadcast(message)
        return found[1:].tobytes() if found[0] else tuple(found[1:].view(np.int8).tolist())

    def _warm_up(self) -> None:
        """Connect every rank to every other, which the first message between two does."""
        others = self._others
        byte, table = self.cupy.zeros(1, np.int8), self.cupy.zeros((self.comm.size, 1), np.int8)
        self.exchange([(r, [byte]) for r in others], [(r, [table[r]]) for r in others], "probe").wait()
        self.combine(self.cupy.zeros(1, np.int64), self.cupy.zeros(1, np.float32))
        self.wait(self._mark())
        self.comm.traffic.pop("probe", None)

    # ---------------------------------------------------------------- what ``base.StreamOrdered`` promises

    def exchange(
        self, outgoing: Sequence[tuple[int, Arrays]], incoming: Sequence[tuple[int, Arrays]], purpose: str, after: Any = None
    ) -> Pending:
        """See ``StreamOrdered``."""
        done = self.cupy.cuda.Event(disable_timing=True)
        self.stream.wait_event(after or self._mark())
        recorded = nullcontext() if self.recorder is None else self.recorder.around(f"exchange of {purpose}", self.stream)
        with recorded, self._group() as link:
            for rank, arrays in outgoing:
                for array in filter(_size, arrays):
                    link.send(_address(array), array.nbytes, self.nccl.NCCL_INT8, rank, self.stream.ptr)
            for rank, arrays in incoming:
                for array in filter(_size, arrays):
                    link.recv(_address(array), array.nbytes, self.nccl.NCCL_INT8, rank, self.stream.ptr)
        done.record(self.stream)
        self.comm.traffic[purpose] += sum(_size(a) for _, arrays in outgoing for a in arrays)
        return _OnStream(self, done)

    def combine(self, sums: Any = None, largest: Any = None) -> None:
        """See ``StreamOrdered``."""
        self.stream.wait_event(self._mark())
        kinds = (sums, self.nccl.NCCL_INT64, self.nccl.NCCL_SUM), (largest, self.nccl.NCCL_FLOAT32, self.nccl.NCCL_MAX)
        with self._group() as link:
            for array, kind, operation in kinds:
                if array is not None:
                    link.allReduce(_address(array), _address(array), array.size, kind, operation, self.stream.ptr)
                    self.comm.traffic["sum"] += (self.comm.size - 1) * array.nbytes
        done = self.cupy.cuda.Event(disable_timing=True)
        done.record(self.stream)
        self.cupy.cuda.get_current_stream().wait_event(done)

    def wait(self, event: Any) -> None:
        """See ``StreamOrdered``."""
        end = time.monotonic() + self.comm.timeouts.deadline
        try:
            while not event.done:
                self.check()
                self.comm.timeouts.check()
                for peer in self._others:
                    self.comm.check(peer)
                if time.monotonic() > end:
                    raise RankLost(f"the GPUs did not finish what was launched within {self.comm.timeouts.deadline:.0f} s.")
                time.sleep(POLL)
        except BaseException:
            self.close()
            raise
        self.check()

    def check(self) -> None:
        """See ``StreamOrdered``."""
        if self.closed:
            raise self._lost(CLOSED)

    def close(self) -> None:
        """End every message, whoever waits for it, from any thread; what was to arrive has not."""
        if self.closed:
            return
        self.closed = True
        thread = threading.Thread(target=self._abort, daemon=True, name="nccl closes")
        thread.start()
        thread.join(CLOSE_TIMEOUT)

    # ---------------------------------------------------------------- NCCL

    def _abort(self) -> None:
        free = self._calling.acquire(timeout=CLOSE_TIMEOUT / 2)  # not for ever: a call may wait for a dead peer
        try:
            self._link.abort()
        finally:
            if free:
                self._calling.release()

    @contextmanager
    def _group(self) -> Iterator[Any]:
        """Calls that NCCL begins together."""
        try:
            with self._calling:
                if self.closed:
                    raise self._lost(CLOSED)
                self.nccl.groupStart()
                try:
                    yield self._link
                finally:
                    self.nccl.groupEnd()
        except (self.nccl.NcclError, KeyError) as error:  # CuPy does not know the name of every error
            raise self._lost(error) from None

    def _mark(self) -> Any:
        """At the end of what was launched on the current stream."""
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record()
        return event

    def _lost(self, cause: Any) -> RankLost:
        peer = (self.comm.rank + 1) % self.comm.size
        said = cause if isinstance(cause, str) else f"NCCL: {type(cause).__name__} {cause}"
        return RankLost(lost_message(peer, self.comm.names[peer], said))


class _OnStream:
    """Messages that end with an event."""

    def __init__(self, link: NcclLink, event: Any) -> None:
        self.link, self.event = link, event

    def wait(self) -> None:
        """What is launched from now on waits for them; the host does not."""
        self.link.cupy.cuda.get_current_stream().wait_event(self.event)


def _address(array: Any) -> int:
    return int(array.data.ptr)


def _size(array: Any) -> int:
    return int(array.nbytes)


def _ended(thread: threading.Thread, seconds: float) -> bool:
    """Whether a thread ends within so many seconds."""
    thread.join(seconds)
    return not thread.is_alive()

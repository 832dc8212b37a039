"""The link that NCCL makes, over a library that copies at once: what it sends and sums, and how its waits end."""

import ctypes
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from daskreg.comm import nccl as link_module
from daskreg.comm.local import run
from daskreg.errors import RankLost


class Array(np.ndarray):
    """An array that takes itself for one of a GPU."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


class Event:
    """Happens as soon as it is recorded, unless ``stuck``."""

    stuck = False

    def __init__(self, **_):
        pass

    record = synchronize = lambda self, stream=None: None
    done = property(lambda self: not Event.stuck)


class Stream:
    ptr = 0

    def __init__(self, **_):
        pass

    def wait_event(self, event):
        """It has happened."""


class Failed(RuntimeError):
    pass


def memory(address, count):
    return np.frombuffer((ctypes.c_char * count).from_address(address), np.uint8)


class Library:
    """NCCL's calls, for ranks that are threads; ``through``: each rank's communicator."""

    available, NcclError = True, Failed
    NCCL_INT8, NCCL_INT64, NCCL_FLOAT32, NCCL_SUM, NCCL_MAX = np.int8, np.int64, np.float32, "sum", "max"

    def __init__(self):
        self.through, self.group, self.aborted, self.broken = threading.local(), threading.local(), [], False

    def get_version(self):
        return 22809

    def get_unique_id(self):
        return tuple(range(-64, 64))

    def NcclCommunicator(self, size, name, rank):
        assert name == self.get_unique_id()
        return SimpleNamespace(
            send=lambda *op: self.group.calls.append(("send", *op)),
            recv=lambda *op: self.group.calls.append(("recv", *op)),
            allReduce=self.reduce,
            abort=lambda: self.aborted.append(rank),
        )

    def groupStart(self):
        self.group.calls = []

    def groupEnd(self):
        if self.broken:
            raise Failed("NCCL_ERROR_SYSTEM_ERROR")
        comm, calls = self.through.comm, self.group.calls
        pending = [comm.receive(peer, [memory(at, count)]) for kind, at, count, _, peer, _ in calls if kind == "recv"]
        pending += [comm._send(peer, [memory(at, count)]) for kind, at, count, _, peer, _ in calls if kind == "send"]
        for message in pending:
            message.wait()

    def reduce(self, source, target, count, kind, operation, stream):
        values = memory(source, count * np.dtype(kind).itemsize).view(kind)
        memory(target, values.nbytes).view(kind)[:] = getattr(self.through.comm._gather(values), operation)(axis=0)


@pytest.fixture
def library(monkeypatch):
    made = Library()
    cuda = SimpleNamespace(Stream=Stream, Event=Event, get_current_stream=Stream, nccl=made)

    class Device:
        id = 0

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    cuda.Device = Device
    cupy = ModuleType("cupy")
    cupy.cuda, cupy.zeros = cuda, lambda *given: np.zeros(*given).view(Array)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(link_module, "_library", lambda: made)
    monkeypatch.setattr(link_module, "POLL", 1e-4)
    return made


def linked(library, size, function):
    """``function(comm)`` on ranks that NCCL connects."""

    def rank(comm):
        library.through.comm = comm
        link_module.use_nccl(comm)
        return function(comm)

    return run(size, rank)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_arrays_arrive_as_they_were_sent_and_empty_ones_are_left_out(library, size):
    def rank(comm):
        up, down = (comm.rank + 1) % size, (comm.rank - 1) % size
        mine = np.arange(6, dtype=np.float32).reshape(2, 3).view(Array) + 10 * comm.rank
        other, nothing = np.zeros((2, 3), np.float32).view(Array), np.zeros((0, 3), np.float32).view(Array)
        comm.stream_ordered.exchange([(up, [mine, nothing])], [(down, [other, nothing])], "halo").wait()
        return np.array(other), comm.traffic["halo"]

    for me, (found, sent) in enumerate(linked(library, size, rank)):
        np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * ((me - 1) % size))
        assert sent == 24


def test_sums_and_the_largest_are_those_of_all_ranks(library):
    def rank(comm):
        sums, most = np.array([comm.rank, 2**60], np.int64).view(Array), np.array([comm.rank / 3], np.float32).view(Array)
        comm.stream_ordered.combine(sums, most)
        return sums.tolist(), most.tolist()

    assert linked(library, 3, rank) == [([3, 3 * 2**60], [float(np.float32(2 / 3))])] * 3


def test_one_rank_needs_no_link(library):
    assert linked(library, 1, lambda comm: comm.stream_ordered) == [None]


def test_a_wait_ends_with_the_deadline_and_the_link_with_it(library, monkeypatch):
    both = threading.Barrier(2)  # a rank that has left is lost, which ends the other's wait before

    def rank(comm):
        comm.barrier()
        comm.timeouts.deadline = 0.05
        monkeypatch.setattr(Event, "stuck", True)
        with pytest.raises(RankLost, match="the GPUs did not finish what was launched within 0 s"):
            comm.stream_ordered.wait(Event())
        both.wait(20)
        return comm.stream_ordered.closed

    assert linked(library, 2, rank) == [True, True]
    assert sorted(library.aborted) == [0, 1]


def test_what_stops_a_run_ends_its_wait_for_a_device(library, monkeypatch):
    """The kernels of a rank whose neighbour is lost wait without end, and with them whoever frees their memory."""

    def rank(comm):
        comm.barrier()
        monkeypatch.setattr(Event, "stuck", True)

        def check():
            raise RankLost("stopped")

        comm.timeouts.check = check
        with pytest.raises(RankLost, match="stopped"):
            comm.stream_ordered.wait(Event())
        return comm.stream_ordered.closed

    assert linked(library, 2, rank) == [True, True]


def test_a_gather_that_fails_ends_the_messages_of_gpus_too(library):
    def rank(comm):
        if comm.rank == 1:
            return comm.stream_ordered.closed
        with pytest.raises(RankLost):
            comm.gather(np.zeros(1))
        return comm.stream_ordered.closed

    assert linked(library, 2, rank) == [True, False]
    assert library.aborted == [0]


def test_nothing_is_agreed_on_after_messages_were_ended(library):
    def rank(comm):
        comm.stream_ordered.close()
        comm.stream_ordered.close()  # once is enough
        for call in (
            lambda: comm.gather(np.zeros(1)),
            lambda: comm.stream_ordered.combine(np.zeros(1, np.int64).view(Array)),
            lambda: comm.stream_ordered.wait(Event()),
        ):
            with pytest.raises(RankLost, match="closed"):
                call()

    linked(library, 2, rank)
    assert sorted(library.aborted) == [0, 1]


def test_an_error_of_nccl_is_the_loss_of_a_rank(library):
    def rank(comm):
        comm.barrier()
        library.broken = True
        with pytest.raises(RankLost, match="NCCL: Failed NCCL_ERROR_SYSTEM_ERROR"):
            comm.stream_ordered.exchange([], [], "halo")

    linked(library, 2, rank)


def test_a_process_without_nccl_says_why(monkeypatch):
    def refuse():
        raise ImportError("libnccl.so.2: cannot open shared object file")

    monkeypatch.setattr(link_module, "_library", refuse)
    assert link_module.shortcoming() == "NCCL cannot be used (ImportError: libnccl.so.2: cannot open shared object file)"
    monkeypatch.setattr(link_module, "_library", lambda: SimpleNamespace(available=False))
    assert link_module.shortcoming() == "CuPy has no NCCL"

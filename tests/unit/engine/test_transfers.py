"""Fields on their way from a GPU: what waits for what."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.engine import planes as module
from daskreg.engine.planes import ArrayPlanes
from daskreg.engine.sweep.transfers import Transfers
from daskreg.grid import Span


class OnDevice:
    """Components in a GPU's memory, which log their copies."""

    __cuda_array_interface__ = None

    def __init__(self, array, log):
        self.array, self.log = array, log

    def __iter__(self):
        return (OnDevice(part, self.log) for part in self.array)

    def get(self, out, blocking=True):
        self.log.append("waited" if blocking else "copied")
        out[...] = self.array


def test_all_components_are_on_their_way_before_a_write_waits(monkeypatch):
    log, values = [], np.random.default_rng(0).random((3, 4, 2, 2), np.float32)
    monkeypatch.setattr(module, "synchronise", lambda source: log.append("waited"), raising=False)
    field = ArrayPlanes.zeros(3, Span(10, 20), (2, 2))
    field.write(Span(12, 16), OnDevice(values, log))
    assert log == ["copied"] * 3 + ["waited"]
    np.testing.assert_array_equal(field.array[:, 2:6], values)
    assert not field.array[:, :2].any()
    assert not field.array[:, 6:].any()


class Stream:
    """One of a GPU's, of which each thread has one at a time."""

    current = threading.local()

    def __init__(self, non_blocking):
        assert non_blocking

    def use(self):
        self.current.stream = self

    def wait_event(self, event):
        assert event.recorded

    def synchronize(self):
        pass


class Event:
    recorded = False

    def __init__(self, disable_timing):
        pass

    def record(self):
        self.recorded = True


class Number:
    def __init__(self, number):
        pass

    def use(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Meeting(ArrayPlanes):
    """Is written when another one is, too."""

    def __init__(self, barrier, streams):
        super().__init__(np.zeros((3, 8, 2, 2), np.float32), 0)
        self.barrier, self.streams = barrier, streams

    def write(self, planes, source):
        self.barrier.wait()
        self.streams.append(Stream.current.stream)
        super().write(planes, source)


@pytest.fixture
def gpu():
    cuda = SimpleNamespace(Stream=Stream, Event=Event, Device=Number)
    return SimpleNamespace(kind="cuda", number=0, xp=SimpleNamespace(empty=np.empty, cuda=cuda))


def test_two_fields_are_written_at_once_each_on_a_stream_of_its_own(gpu):
    barrier, streams = threading.Barrier(2, timeout=20), []
    fields = {name: Meeting(barrier, streams) for name in ("u", "m")}
    transfers = Transfers(gpu, fields, most=4)
    values = {name: np.random.default_rng(k).random((3, 4, 2, 2), np.float32) for k, name in enumerate(fields)}
    for name in fields:
        transfers.put(name, Span(2, 6), values[name])
    transfers.settle()
    transfers.close()
    for name, field in fields.items():
        np.testing.assert_array_equal(field.array[:, 2:6], values[name])
    assert len(set(streams)) == 2


class Launched:
    """A stream on which one thread launches: work is done when somebody waits for an event behind it, or by ``finish``."""

    def __init__(self):
        self.work, self.lock = [], threading.Lock()

    def empty(self, *shape):
        """Memory that was freed a moment ago, while a kernel that had been launched was still to write to it."""
        memory = np.empty(*shape)
        self.work.append(lambda: memory.fill(np.nan))
        return memory

    def event(self, disable_timing):
        made = SimpleNamespace(before=None)
        made.record = lambda: setattr(made, "before", len(self.work))
        return made

    def finish(self, before=None):
        with self.lock:
            for k, work in enumerate(self.work[:before]):
                work()
                self.work[k] = lambda: None


@pytest.mark.parametrize("steps", [[(0, 4)], [(0, 4), (4, 8)], [(0, 1), (1, 2), (2, 6), (6, 8)]])
def test_a_read_into_new_memory_is_behind_all_that_was_launched(steps):
    """Two staging arrays that are new, and two that grow."""

    class Beside(Stream):
        def wait_event(self, event):
            launched.finish(event.before)

    launched, found = Launched(), np.zeros((3, 8, 2, 2), np.float32)
    cuda = SimpleNamespace(Stream=Beside, Event=launched.event, Device=Number)
    gpu = SimpleNamespace(kind="cuda", number=0, xp=SimpleNamespace(empty=launched.empty, cuda=cuda))
    field = ArrayPlanes(np.random.default_rng(0).random(found.shape, np.float32), 0)
    transfers = Transfers(gpu, {"u": field}, most=4)

    def into(name, planes):
        launched.finish()  # the copy that follows is launched behind it
        return found[:, planes.start : planes.stop]

    transfers.expect([{"u": [Span(*planes)]} for planes in steps])
    for _ in steps:
        transfers.take(into)
    transfers.close()
    read = steps[-1][1]
    np.testing.assert_array_equal(found[:, :read], field.array[:, :read])

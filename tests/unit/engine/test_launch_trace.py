"""A timeline of launches, on a clock of a GPU that stands still."""

import time
from types import SimpleNamespace

import pytest

from daskreg.engine.launch_trace import KEPT, LaunchTrace


@pytest.fixture
def device():
    """CuPy with a clock, ms, that tests set."""
    clock = SimpleNamespace(ms=0.0)

    class Event:
        def record(self, stream=None):
            self.at, self.stream = clock.ms, stream

        def synchronize(self):
            pass

    cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda a, b: b.at - a.at)
    return clock, SimpleNamespace(cuda=cuda)


def test_launches_are_reported_in_seconds_of_the_host(device):
    clock, cupy = device
    events = []
    trace = LaunchTrace(cupy, lambda *event: events.append(event))
    clock.ms = 2.0
    with trace.around("sample"):
        clock.ms = 5.0
    trace.report()
    ((name, start, end),) = events
    assert name == "gpu sample"
    assert start - trace.began == pytest.approx(0.002)
    assert end - start == pytest.approx(0.003)
    assert trace.began <= time.perf_counter()
    trace.report()
    assert len(events) == 1  # once


def test_the_last_launches_of_a_level_are_kept(device):
    _, cupy = device
    events = []
    trace = LaunchTrace(cupy, lambda *event: events.append(event[0]))
    for k in range(KEPT + 3):
        with trace.around(str(k)):
            pass
    trace.report()
    assert events == [f"gpu {k}" for k in range(3, KEPT + 3)]

"""Bounds on the time and memory of a call."""

from __future__ import annotations

import re
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

SECONDS = 5.0  # of processor time, so that a busy machine does not count
BYTES = 1 << 30
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class TooSlow(BaseException):
    """No reader catches it."""


@contextmanager
def bounded():
    """Raises TooSlow after SECONDS, and AssertionError where the block took more than BYTES more memory than before."""

    def late(*_):
        raise TooSlow

    before = signal.signal(signal.SIGPROF, late)
    start = _memory("VmRSS")
    if CLEAR.exists():
        CLEAR.write_text("5")  # the peak starts again
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert _memory("VmHWM") - start < BYTES


@contextmanager
def address_space(more: int = 16 << 30):
    """Larger allocations than ``more`` fail in the block."""
    if not STATUS.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _memory(name: str) -> int:
    """0 where the system does not tell it: memory is bounded on Linux alone."""
    if not STATUS.exists():
        return 0
    return int(re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.M)[1]) << 10

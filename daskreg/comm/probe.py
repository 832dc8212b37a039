"""What the link between ranks does: latency and rate, measured in a few milliseconds before a run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from daskreg.comm.base import Communicator

REPEATS = 3  # messages of each size, of which the fastest counts
SMALL = 8  # bytes
LARGE, LARGEST = 1 << 20, 1 << 24  # bytes; the latter where the former took less than FAST
FAST = 2e-3  # seconds


@dataclass(frozen=True)
class LinkSpeed:
    """Of messages from each rank to the next and from the one before, at once.

    seconds: of one with 8 bytes;  bytes_per_second: one way, of one with ``size`` bytes
    """

    seconds: float
    bytes_per_second: float
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.seconds * 1e6:.0f} us, {self.bytes_per_second / 1e9:.3g} GB/s at {self.size / 2**20:g} MiB"


def measure_link(comm: Communicator, xp: Any = np) -> LinkSpeed | None:
    """The slowest rank's, the same on every rank; None where there is one rank. All ranks call this.

    xp: module of the arrays that a run exchanges, NumPy or CuPy; where GPU arrays cannot be sent as they are, the
    copies to and from the host are part of what is measured. What is sent does not count as traffic.
    """
    if comm.size == 1:
        return None
    before, waits = comm.traffic.copy(), comm.busy_wait
    comm.busy_wait = xp is not np  # as in an iteration
    latency = _seconds(comm, SMALL, xp)
    size = LARGE
    took = _seconds(comm, size, xp)
    if xp is not np and took < FAST:  # a link between GPUs, whose rate shows only then
        size = LARGEST
        took = _seconds(comm, size, xp)
    comm.busy_wait = waits
    comm.traffic.clear()
    comm.traffic.update(before)
    return LinkSpeed(latency, size / took, size)


def _seconds(comm: Communicator, size: int, xp: Any) -> float:
    """The shortest time of an exchange, of the rank for which that is longest."""
    own, other = xp.zeros(size, np.uint8), xp.empty(size, np.uint8)
    direct, shortest = comm.device_arrays or xp is np or comm.stream_ordered is not None, np.inf
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for _ in range(REPEATS):
        _finish(xp)
        start = time.perf_counter()
        sent, received = (own, other) if direct else (own.get(), np.empty(size, np.uint8))
        if comm.stream_ordered is not None and xp is not np:
            comm.stream_ordered.exchange([(to, [sent])], [(source, [received])], "probe").wait()
        else:
            comm.exchange([(to, [sent])], [(source, [received])], "probe")
        if not direct:
            other.set(received)
        _finish(xp)
        shortest = min(shortest, time.perf_counter() - start)
    return float(comm.max(np.array([shortest]))[0])


def _finish(xp: Any) -> None:
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()

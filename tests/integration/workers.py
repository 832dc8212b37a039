"""Real workers: a cluster of processes, and registrations that take it a moment."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.core import Status

import daskreg
from daskreg.cluster import rank_job
from daskreg.cluster.worker_calls import workers_of
from daskreg.workflows.register import Result
from daskreg.workflows.verify import Comparison, compare

COMMS = ["tcp", "ucx"]
# a connection that Dask tries again, as it does where workers take long to start, leaves its first socket behind
SOCKETS = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")


@contextmanager
def unjudged() -> Iterator[None]:
    """Registrations of this process without a verdict, which takes longer than they do, where the claims are about other things.

    The ranks still gather what it is made of.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_job, "_judged", no_verdict)
        yield


def no_verdict(*_: Any) -> dict[str, Any]:
    """As runs of versions that gave none."""
    return {}


class Unjudged(WorkerPlugin):
    """The same for the processes of workers."""

    name = "unjudged"

    def setup(self, worker: Any) -> None:
        """When it starts, or at once."""
        rank_job._judged = no_verdict


@contextmanager
def cluster(workers: int, *, judges: bool = False, **options: Any) -> Iterator[Client]:
    """So many worker processes that nobody else uses, started anew when they die. judges: whether runs get a verdict."""
    options = {
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
    } | options
    with (
        LocalCluster(n_workers=workers, processes=True, **options) as found,
        Client(found, set_as_default=False) as client,
    ):
        if not judges:
            client.register_plugin(Unjudged())
        yield client


def all_started(client: Client, number: int, seconds: float = 30.0) -> bool:
    """Whether so many workers are there, to the end of their start.

    One that is killed while its nanny waits for its start is not started again.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        nannies = list(client.cluster.workers.values())
        if len(workers_of(client)) == number and all(n.process and n.process.status == Status.running for n in nannies):
            return True
        time.sleep(0.1)
    return False


def require(comm: str) -> None:
    """Skip where UCX is not installed."""
    if comm == "ucx":
        pytest.importorskip("ucxx")


def addresses(client: Client) -> list[str]:
    """Workers in the order in which a run gives them ranks."""
    return sorted(workers_of(client))


def processes(client: Client) -> list[int]:
    """Their process ids, by rank."""
    found = client.run(os.getpid)
    return [found[a] for a in addresses(client)]


def run(client: Client, *images: Any, **options: Any) -> Result:
    """Register without checkpoints, unless asked for otherwise."""
    return daskreg.register(*images, client=client, **{"checkpoint": None, "retries": 0, **options})


def same(first: Result, other: Result) -> Comparison:
    """A comparison that is true where not a bit differs."""
    return compare(first, other, len(other.report["ranks"]))

"""A run on a cluster: choose workers, lock them, run a rank on each, and start again from the last checkpoint if one is lost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from distributed import Client, Lock
from distributed.client import Future

from daskreg.cluster import timeouts
from daskreg.cluster.bring_up import cancel, form_group, release, start_actors, submit
from daskreg.cluster.interrupts import shielded
from daskreg.cluster.link import TransportChoice
from daskreg.cluster.rank_actor import request
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.rank_job import RankJob
from daskreg.cluster.supervision import handle_event, reports, stop_with_checkpoint
from daskreg.cluster.worker_calls import awaited_workers, call_each
from daskreg.engine.report import STOP, Observer, Progress, observer_of
from daskreg.errors import InputError, RankLost, RunError, counted

log = logging.getLogger("daskreg")
_running: dict[str, tuple[Client, RankGroup]] = {}  # those that this process waits for


def run_on_cluster(
    client: Client,
    make_job: Callable[[int], RankJob],
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
    *,
    comm: TransportChoice = "auto",
    retries: int = 1,
    deadline: float = 600.0,
    save_when_stopped: bool = True,
) -> list[dict[str, Any]]:
    """Run a rank on each of ``workers`` workers; their reports, by rank.

    make_job: the job for a number of workers;  retries: how often a run that lost a worker starts again, from its last
    checkpoint, on those that remain;  deadline: seconds after which a silent rank counts as lost;  save_when_stopped: write a
    checkpoint first at Ctrl-C, and where SIGTERM or SIGHUP unwinds.
    Raises whatever a rank raised, RankLost, and Stopped where the process was told to end.
    """
    observer, members = observer_of(progress), choose_workers(client, workers)
    job = make_job(len(members))
    for left in range(retries, -1, -1):
        try:
            with locked(client, members), shielded(client, members) if save_when_stopped else nullcontext():
                return _attempt(client, job, members, observer, comm, deadline, save_when_stopped)
        except RankLost as error:
            if not left:
                raise
            remaining = remaining_workers(client, members)
            log.warning("%s Starting again from the last checkpoint on %d of %d workers.", error, len(remaining), len(members))
            members = remaining
            job = replace(make_job(len(members)), resume=True)
    raise AssertionError("unreachable")


def ask_running(what: float) -> int:
    """Ask the runs of this process for something (NEXT, STOP), from another thread; how many there are.

    The first rank alone is asked to end a level, and the others follow it: one that heard of it later would end the next one.
    """
    for client, group in list(_running.values()):
        asked = group.addresses[:1] if what < STOP else group.addresses
        call_each(client, asked, request, group.run, what, seconds=timeouts.RESPONSE_TIMEOUT)
    return len(_running)


def _attempt(
    client: Client,
    job: RankJob,
    members: Sequence[str],
    observer: Observer,
    comm: TransportChoice,
    deadline: float,
    save_when_stopped: bool,
) -> list[dict[str, Any]]:
    """One group of ranks from its start to its end."""
    group = form_group(client, members, comm, deadline, job.device)
    client.subscribe_topic(group.run, lambda event: handle_event(group, event[1], observer))
    futures: list[Future[Any]] = []
    _running[group.run] = client, group
    try:
        start_actors(client, group)
        futures = submit(client, group, job)
        return reports(client, group, futures, observer)
    except (SystemExit, KeyboardInterrupt):
        if save_when_stopped:
            stop_with_checkpoint(client, group, futures)
        raise
    finally:
        del _running[group.run]
        observer.tick()
        cancel(client, group, futures)
        client.unsubscribe_topic(group.run)
        release(client, group)


def choose_workers(client: Client, workers: int) -> list[str]:
    """Addresses of as many workers as wanted. Raises InputError where there are fewer after ``WORKER_START_TIMEOUT``."""
    known = awaited_workers(client, workers, timeouts.WORKER_START_TIMEOUT)
    if len(known) < workers:
        raise InputError(
            f"the Dask cluster has {counted(len(known), 'worker')}, {workers} are needed; start more, or ask for fewer."
        )
    return sorted(known)[:workers]


def remaining_workers(client: Client, members: Sequence[str]) -> list[str]:
    """The workers that are still there and answer, and other ones in place of lost ones where the cluster has some.

    Waits up to ``REPLACEMENT_TIMEOUT`` for new ones: whoever watches the workers may be starting them. On fewer workers a run may
    need more memory than each has.
    """
    known = awaited_workers(client, len(members), timeouts.REPLACEMENT_TIMEOUT)
    answers = call_each(client, sorted(known), os.getpid, seconds=timeouts.RESPONSE_TIMEOUT)
    alive = [address for address, answer in answers.items() if not isinstance(answer, BaseException)]
    kept = [a for a in members if a in alive]
    spare = [a for a in alive if a not in members]
    return (kept + spare)[: len(members)] or choose_workers(client, 1)


@contextmanager
def locked(client: Client, members: Sequence[str]) -> Iterator[None]:
    """Keep other runs from these workers: ranks that wait for a rank whose worker is busy would take it for lost.

    A lock for each worker, acquired in one order by all runs, so that two runs cannot wait for each other. Locks have leases
    that the scheduler takes back when a client stops renewing them. ``distributed.MultiLock`` has none: what a killed client
    held, or waited for, would stay locked.
    """
    make: Any = _Lock
    with ExitStack() as locks:
        for address in sorted(members):
            lock = make(f"daskreg-{address}", scheduler_rpc=client.scheduler, loop=client.loop)
            _acquire(lock, address)
            locks.callback(_unlock, lock)
        yield


def _acquire(lock: Any, address: str) -> None:
    """Wait for as long as another run has the worker, and say so. Raises RunError where the scheduler does not answer."""
    begun, seconds = time.monotonic(), timeouts.LOCK_WARNING_DELAY
    try:
        while not lock.acquire(timeout=seconds):
            waited = time.monotonic() - begun
            log.warning("worker %s is busy with another registration; waiting for it (%.0f s so far)", address, waited)
            seconds = timeouts.LOCK_REPORT_INTERVAL
    except TimeoutError as error:
        waited = timeouts.SCHEDULER_RESPONSE_TIMEOUT
        raise RunError(f"the Dask scheduler did not answer for {waited:.0f} s; look at its log, then run again.") from error


class _Lock(Lock):
    """A lock whose lease is renewed in silence: whoever uses the cluster notices that the scheduler is lost.

    Raises TimeoutError where the scheduler does not answer.
    """

    def sync(self, func: Any, *args: Any, asynchronous: Any = None, callback_timeout: Any = None, **kwargs: Any) -> Any:
        """Called by Dask for whatever it asks the scheduler."""
        call: Any = super().sync
        limit = callback_timeout or float(kwargs.get("timeout") or 0) + timeouts.SCHEDULER_RESPONSE_TIMEOUT
        return call(func, *args, asynchronous=asynchronous, callback_timeout=limit, **kwargs)

    async def _refresh_leases(self) -> None:
        refresh: Any = super()._refresh_leases
        with suppress(OSError):
            await refresh()


def _unlock(lock: Lock) -> None:
    with suppress(Exception):  # the scheduler may be gone, and the lock with it
        lock.release()

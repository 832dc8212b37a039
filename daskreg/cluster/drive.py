"""Bring up a gang of ranks, one a worker, hand each the job, watch them, start again from the last checkpoint if one is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from distributed import Client, Lock, Worker, get_worker, wait
from distributed.client import Future, FuturesCancelledError

from daskreg import machine
from daskreg.cluster.job import Job, execute
from daskreg.cluster.session import workers_of
from daskreg.comm import Endpoint, SingleRank, Timeouts, Transport, available_transports, open_endpoint, use_shared_memory
from daskreg.engine.report import SAVE, STOP, Progress, Watch
from daskreg.errors import InputError, RankLost, RunError, Stopped

log = logging.getLogger("daskreg")
Choice = Transport | Literal["auto"]
EVERY = 0.1  # seconds between two progress messages
LOOK = 0.5  # seconds between two looks at whether all workers are there
COLD = 120.0  # seconds that workers may take to come up
PATIENT = 2.0  # seconds a lock is waited for in silence
SOON = 10.0  # seconds after which the end of a level is worth a checkpoint
GRACE = 60.0  # seconds in which ranks that were asked to stop write their checkpoint
SETTLE = 2.0  # seconds within which all that wait for one rank give it up
ANSWER = 5.0  # seconds in which a worker answers that is not stuck


class Cancelled(Stopped):
    """The run was stopped from outside, at once."""


@dataclass
class Seat:
    """A rank's place on its worker: how it reaches the others, and what it is asked."""

    rank: int
    cores: int
    timeouts: Timeouts
    hosts: tuple[str, ...]  # of all ranks
    endpoint: Endpoint | None = None
    asked: float = 0.0


_seats: dict[str, Seat] = {}  # by run, in the worker's process; one worker has one rank of a run


@dataclass(frozen=True)
class Gang:
    """The workers of one run: addresses by rank, their hosts, and how ranks talk."""

    run: str
    addresses: tuple[str, ...]
    hosts: tuple[str, ...]
    comm: Transport
    deadline: float

    def name(self, rank: int) -> str:
        """Where a rank is, for people."""
        return f"{self.hosts[rank]}, worker {self.addresses[rank]}"

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.name(r) for r in range(len(self.addresses)))


class Reporter(Watch):
    """Sends progress to whoever watches, notices that its task was cancelled, and knows when a checkpoint is due."""

    def __init__(self, run: str, seat: Seat, checkpoint: float | None) -> None:
        self.worker, self.topic, self.seat, self.checkpoint = get_worker(), run, seat, checkpoint
        self.task = self.worker.state.tasks[self.worker.get_current_task()]
        self.told, self.saved = 0.0, time.monotonic()

    def check(self) -> None:
        """Raises Cancelled once nobody waits for this rank any more."""
        if self.task.state != "executing":
            raise Cancelled("the run was stopped before it finished.")

    def slow(self, rank: int, seconds: float) -> None:
        """Report a rank that is waited for."""
        self.worker.log_event(self.topic, {"slow": {"rank": rank, "by": self.seat.rank, "seconds": seconds}})

    def __call__(self, progress: Progress) -> None:
        """Called once an iteration; rank 0 talks at most ten times a second, and at the end of a level."""
        self.check()
        now = time.monotonic()
        if self.seat.rank == 0 and (now - self.told > EVERY or progress.iteration == progress.iterations):
            self.told = now
            self.worker.log_event(self.topic, {"progress": vars(progress)})

    def asked(self, *, level_end: bool = False) -> float:
        """STOP when the driver said so; SAVE when rank 0's clock does."""
        if self.checkpoint is None:
            return STOP if self.seat.asked >= STOP else 0.0
        due = min(SOON, self.checkpoint) if level_end else self.checkpoint
        if self.seat.rank == 0 and time.monotonic() - self.saved >= due:
            self.saved = time.monotonic()
            return max(SAVE, self.seat.asked)
        return self.seat.asked


def run_job(
    client: Client,
    make_job: Callable[[int], Job],
    workers: int = 1,
    watch: Callable[[Progress], None] | None = None,
    *,
    comm: Choice = "auto",
    retries: int = 1,
    deadline: float = 600.0,
) -> list[dict[str, Any]]:
    """Run on ``workers`` workers; what each rank reports, by rank.

    make_job: the job for a number of workers;  retries: how often a run that lost a worker starts again, from its last
    checkpoint, on those that remain;  deadline: seconds after which a silent rank counts as lost.
    Raises whatever a rank raised, RankLost, and Stopped where the process was told to end.
    """
    members = _members(client, workers)
    job = make_job(len(members))
    for left in range(retries, -1, -1):
        try:
            with _held(client, members):
                return _run(client, job, members, watch, comm, deadline)
        except RankLost as error:
            if not left:
                raise
            remaining = _remaining(client, members)
            log.warning("%s Starting again from the last checkpoint on %d of %d workers.", error, len(remaining), len(members))
            members = remaining
            job = replace(make_job(len(members)), resume=True)
    raise AssertionError("unreachable")


def _run(
    client: Client,
    job: Job,
    members: Sequence[str],
    watch: Callable[[Progress], None] | None,
    comm: Choice,
    deadline: float,
) -> list[dict[str, Any]]:
    gang = _gather(client, members, comm, deadline)
    client.subscribe_topic(gang.run, lambda event: _hear(gang, event[1], watch))
    futures: list[Future[Any]] = []
    try:
        _seat(client, gang)
        options: dict[str, Any] = {"allow_other_workers": True, "pure": False, "retries": 0}
        futures = [
            client.submit(_task, job, gang.run, address, gang.name(rank), key=f"{gang.run}-{rank}", workers=[address], **options)
            for rank, address in enumerate(gang.addresses)
        ]
        return _results(client, gang, futures)
    except SystemExit:
        _ask_to_stop(client, gang, futures)
        raise
    finally:
        _dismiss(client, gang, futures)


def _results(client: Client, gang: Gang, futures: list[Future[Any]]) -> list[dict[str, Any]]:
    """What the ranks return; the first failure counts, and a missing worker is one."""
    while pending := [f for f in futures if not f.done()]:
        with suppress(TimeoutError, FuturesCancelledError), client.as_current():
            wait(pending, timeout=LOOK, return_when="FIRST_COMPLETED")
        if not _failed(futures):
            _require_all(client, gang, futures)
            continue
        break
    if _failed(futures):
        raise _cause(client, gang, futures)
    return [f.result() for f in futures]


def _failed(futures: list[Future[Any]]) -> list[int]:
    return [rank for rank, f in enumerate(futures) if f.status in ("error", "lost", "cancelled")]


def _cause(client: Client, gang: Gang, futures: list[Future[Any]]) -> BaseException:
    """The failure behind the failures: ranks that lost another one, or were stopped, only tell of it."""
    if any(f.status == "cancelled" for f in futures):
        return RunError(
            "the ranks were cancelled from outside: the Dask scheduler was lost, or somebody stopped them; look at its log."
        )
    own = [e for e in _errors(futures) if not isinstance(e, RankLost | Stopped)]
    if own:
        return own[0]
    with suppress(TimeoutError), client.as_current():
        wait(futures, timeout=SETTLE)
    try:
        _require_all(client, gang, futures)
    except RankLost as lost:
        return lost
    silent = [f"rank {rank} (" for rank, f in enumerate(futures) if not f.done()]
    # a rank that waits for one that waits for the silent one names it, wrongly
    return min(_errors(futures), key=lambda e: (isinstance(e, Stopped), not any(name in str(e) for name in silent)))


def _errors(futures: list[Future[Any]]) -> list[BaseException]:
    return [e for e in (futures[rank].exception() for rank in _failed(futures)) if e is not None]


def _require_all(client: Client, gang: Gang, futures: list[Future[Any]]) -> None:
    """Raises RankLost for a worker that is gone while its rank has not finished."""
    try:
        there = workers_of(client)
    except RunError:  # the client tries again to reach the scheduler, and cancels the tasks when it gives up
        return
    for rank, address in enumerate(gang.addresses):
        if address not in there and futures[rank].status != "finished":
            raise RankLost(f"rank {rank} ({gang.name(rank)}) was lost; look at that worker's log for the reason.")


def _task(job: Job, run: str, address: str, name: str) -> dict[str, Any]:
    """A rank's whole life, on its worker and no other."""
    seat = _seats.get(run)
    if seat is None or get_worker().address != address:
        raise RankLost(f"the worker of a rank ({name}) was lost; look at its log for the reason.")
    reporter = Reporter(run, seat, job.checkpoint)
    seat.timeouts.check, seat.timeouts.on_slow = reporter.check, reporter.slow
    comm = seat.endpoint.communicator if seat.endpoint else SingleRank()
    use_shared_memory(comm, seat.hosts)
    return execute(job, comm, reporter, seat.cores)


def _members(client: Client, workers: int) -> list[str]:
    """Addresses of as many workers as wanted. Raises InputError where there are fewer."""
    try:
        client.wait_for_workers(workers, timeout=COLD)
    except TimeoutError:
        n = len(workers_of(client))
        raise InputError(f"the Dask cluster has {n} workers, {workers} are needed; start more, or ask for fewer.") from None
    return sorted(workers_of(client))[:workers]


def _remaining(client: Client, members: Sequence[str]) -> list[str]:
    """The workers that are still there and answer, and new ones in place of lost ones where the cluster has some."""
    there = sorted(workers_of(client))
    there = [a for a, found in _on_each(client, there, os.getpid, seconds=ANSWER).items() if not isinstance(found, BaseException)]
    kept = [a for a in members if a in there]
    spare = [a for a in there if a not in members]
    found = (kept + spare)[: len(members)]
    return found or _members(client, 1)


def _gather(client: Client, members: Sequence[str], comm: Choice, deadline: float) -> Gang:
    """Agree on how to talk. Raises InputError where a worker cannot do what was asked for."""
    found = workers_of(client)
    hosts = tuple(str(found[a]["host"]) for a in members)
    gang = Gang(f"daskreg-{uuid.uuid4().hex}", tuple(members), hosts, "tcp", deadline)
    if len(members) == 1:
        return gang
    able = _required(client, gang, available_transports)
    kind: Transport = _best(able) if comm == "auto" else comm
    if not all(kind in a for a in able):
        raise InputError(f"--comm {kind}: not every worker can; install the extra 'ucx' there, or use --comm tcp.")
    log.info("%d ranks over %s", len(members), kind)
    return replace(gang, comm=kind)


def _best(able: Sequence[Sequence[Transport]]) -> Transport:
    """UCX where every worker can."""
    return "ucx" if all("ucx" in kinds for kinds in able) else "tcp"


def _seat(client: Client, gang: Gang) -> None:
    """A seat on every worker, and all of them connected."""
    endpoints = _required(client, gang, _take_seat, gang)
    if len(endpoints) > 1:
        _required(client, gang, _connect, gang, endpoints)


def _required(client: Client, gang: Gang, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns on every worker, by rank. Raises RankLost for one that is gone or does not answer."""
    found = _on_each(client, gang.addresses, function, *arguments, seconds=gang.deadline)
    for rank, result in enumerate(found.values()):
        if isinstance(result, OSError | KeyError):
            why = str(result) or "no answer"
            raise RankLost(f"rank {rank} ({gang.name(rank)}) was lost while the ranks were brought up: {why}.") from result
        if isinstance(result, BaseException):
            raise result
    return list(found.values())


def _on_each(
    client: Client, workers: Sequence[str], function: Callable[..., Any], *arguments: Any, seconds: float
) -> dict[str, Any]:
    """What a function returns or raises on each worker, TimeoutError where none answers: one that is stuck holds up no other."""

    async def one(worker: str) -> Any:
        call = client.run(function, *arguments, workers=[worker], on_error="return")
        return (await asyncio.wait_for(call, seconds))[worker]

    async def each() -> Any:
        return await asyncio.gather(*map(one, workers), return_exceptions=True)

    return dict(zip(workers, client.sync(each), strict=True))


async def _take_seat(gang: Gang, dask_worker: Worker) -> Any:
    rank = gang.addresses.index(dask_worker.address)
    cores = max(1, machine.cores().value // gang.hosts.count(gang.hosts[rank]))
    seat = _seats[gang.run] = Seat(rank, cores, Timeouts(deadline=gang.deadline), gang.hosts)
    if len(gang.addresses) == 1:
        return None
    security = dask_worker.security
    seat.endpoint = await open_endpoint(gang.comm, gang.run, rank, gang.names, seat.timeouts, gang.hosts[rank], security=security)
    return seat.endpoint.address


async def _connect(gang: Gang, endpoints: Sequence[Any]) -> None:
    endpoint = _seats[gang.run].endpoint
    assert endpoint is not None
    await endpoint.connect(endpoints, gang.hosts)


async def _rise(run: str) -> None:
    seat = _seats.pop(run, None)
    if seat is not None and seat.endpoint is not None:
        await seat.endpoint.close()


def _ask(run: str, what: float) -> None:
    seat = _seats.get(run)
    if seat is not None:
        seat.asked = what


def _hear(gang: Gang, message: dict[str, Any], watch: Callable[[Progress], None] | None) -> None:
    """What ranks tell while they run."""
    if "progress" in message and watch is not None:
        watch(Progress(**message["progress"]))
    if "slow" in message:
        rank, seconds = message["slow"]["rank"], message["slow"]["seconds"]
        log.warning("rank %d (%s) has kept rank %d waiting for %.0f s", rank, gang.name(rank), message["slow"]["by"], seconds)


def _ask_to_stop(client: Client, gang: Gang, futures: list[Future[Any]]) -> None:
    """Have all ranks write a checkpoint and end, as long as a batch system usually waits."""
    log.warning("asked to stop: the ranks write a checkpoint first")
    _on_each(client, _present(client, gang), _ask, gang.run, STOP, seconds=ANSWER)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and not all(f.done() for f in futures):
        time.sleep(0.1)


def _dismiss(client: Client, gang: Gang, futures: list[Future[Any]]) -> None:
    """Cancel what still runs, give the ranks a moment to notice, and take their seats away."""
    if any(not f.done() for f in futures):
        client.cancel(futures, force=True)
        end = time.monotonic() + 5
        while time.monotonic() < end and _busy(client, gang):
            time.sleep(0.05)
    client.unsubscribe_topic(gang.run)
    _on_each(client, _present(client, gang), _rise, gang.run, seconds=ANSWER)


def _busy(client: Client, gang: Gang) -> bool:
    """Whether a rank of this run still works."""
    return any(str(key).startswith(gang.run) for keys in client.processing().values() for key in keys)


@contextmanager
def _held(client: Client, members: Sequence[str]) -> Iterator[None]:
    """No other run has these workers: ranks that wait for a rank whose worker is busy would take it for lost.

    One lock a worker, always in the same order, so that two runs cannot wait for each other; a driver that dies loses its locks.
    """
    with ExitStack() as held:
        for address in sorted(members):
            lock = Lock(f"daskreg-{address}", scheduler_rpc=client.scheduler, loop=client.loop)
            if not lock.acquire(timeout=PATIENT):
                log.warning("worker %s is busy with another registration; waiting for it", address)
                lock.acquire()
            held.callback(_release, lock)
        yield


def _release(lock: Lock) -> None:
    with suppress(Exception):  # the scheduler may be gone, and the lock with it
        lock.release()


def _present(client: Client, gang: Gang) -> list[str]:
    with suppress(RunError):  # where the scheduler is gone, so is everybody
        there = workers_of(client)
        return [a for a in gang.addresses if a in there]
    return []

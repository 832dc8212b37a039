"""One rank on its worker: an object that lives as long as the run, communicates with the other ranks, and runs one job.

The functions below are called on workers by the client, over Dask; the actor's ``run`` is a task in a thread of the worker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Worker, get_worker

from daskreg import machine
from daskreg.cluster import timeouts
from daskreg.cluster.checkpoint_schedule import CheckpointSchedule
from daskreg.cluster.closing import end_soon
from daskreg.cluster.compile_ahead import CompileHelper
from daskreg.cluster.compile_count import CompileCount
from daskreg.cluster.logs import hide_normal_ends
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.rank_job import RankJob, run_rank, use_device
from daskreg.comm import Communicator, Endpoint, SingleRank, Timeouts, measure_link, open_endpoint, use_shared_memory
from daskreg.engine.report import NEXT, SAVE, STOP, LevelReport, Place, Progress, Watch
from daskreg.errors import RankLost, Stopped
from daskreg.kernels.compiler.tally import TALLY, Compiled


class Cancelled(Stopped):
    """The run was stopped from outside, at once."""


class RankActor:
    """A rank of a run: its endpoint, its timeouts, and what it was asked for.

    requested: 0, NEXT, SAVE or STOP, see ``Watch.asked``.
    """

    def __init__(self, group: RankGroup, rank: int) -> None:
        self.group, self.rank = group, rank
        self.timeouts = Timeouts(deadline=group.deadline)
        self.endpoint: Endpoint | None = None
        self.requested = 0.0

    async def open(self, worker: Worker) -> Any:
        """Open the endpoint; its address, None where there is no other rank."""
        if self.group.size == 1:
            return None
        group, rank = self.group, self.rank
        self.endpoint = await open_endpoint(
            group.transport, group.run, rank, group.names, self.timeouts, group.hosts[rank], secret=group.secret,
            security=worker.security if group.encrypted else None, same_memory=group.same_memory,
        )  # fmt: skip
        return self.endpoint.address

    async def connect(self, addresses: Sequence[Any]) -> None:
        """Connect to the endpoints of all ranks. Raises RankLost."""
        assert self.endpoint is not None
        await self.endpoint.connect(addresses, self.group.hosts)

    @property
    def communicator(self) -> Communicator:
        """This rank's access to the others, for the thread that runs the job."""
        return self.endpoint.communicator if self.endpoint else SingleRank()

    def run(self, job: RankJob) -> dict[str, Any]:
        """Run the job from its first stage to its last; returns the rank's report."""
        watch = RankWatch(self, job)
        self.timeouts.check, self.timeouts.on_slow = watch.check, watch.report_slow
        comm = self.communicator
        use_shared_memory(comm, self.group.hosts)
        device = use_device(job, self.group.cores[self.rank])
        if self.group.nccl:
            from daskreg.comm.nccl import use_nccl

            use_nccl(comm)
        speed = measure_link(comm, device.xp)
        if speed is not None and self.rank == 0:
            watch.report_link(str(speed))
        with self._compiling(job, watch) as compiled:
            report = run_rank(job, comm, watch, device)
        report["machine"]["compiled"] = compiled.as_dict()
        report["machine"]["link"] = None if speed is None else {"transport": self.group.link, **speed.as_dict()}
        return report

    @contextmanager
    def _compiling(self, job: RankJob, watch: RankWatch) -> Iterator[Compiled]:
        """Count the kernels that are compiled; the first rank of a machine has help from another process."""
        first = self.group.hosts.index(self.group.hosts[self.rank]) == self.rank
        helper, count = CompileHelper(job.plan, wanted=first and job.device == "cpu"), CompileCount(job.plan, job.device)

        def report(path: Path) -> None:
            helper.start()
            if self.rank == 0:
                watch.compiling(*count.at(path, TALLY.count.kernels))

        try:
            yield TALLY.begin_count(report)
        finally:
            helper.close()

    async def release(self) -> None:
        """Close the endpoint, which ends every wait."""
        if self.endpoint is not None:
            await self.endpoint.close()  # whoever waits learns of it before messages of GPUs end
            if self.endpoint.communicator.stream_ordered is not None:
                await asyncio.to_thread(self.endpoint.communicator.stream_ordered.close)


class RankWatch(Watch):
    """Sends a rank's progress to the client, notices that its task was cancelled, and decides when a checkpoint is due."""

    def __init__(self, actor: RankActor, job: RankJob) -> None:
        self.actor, self.job, self.schedule, self.worker = actor, job, CheckpointSchedule(job.checkpoint), get_worker()
        self.task = self.worker.state.tasks[self.worker.get_current_task()]
        self.last_progress = self.last_memory = 0.0

    def check(self) -> None:
        """Raise Cancelled once the client no longer waits for this rank."""
        if self.task.state != "executing":
            raise Cancelled("the run was stopped before it finished.")

    def report_slow(self, rank: int, seconds: float) -> None:
        """Report a rank that this one has been waiting for."""
        self._send("slow", {"rank": rank, "by": self.actor.rank, "seconds": seconds})

    def report_link(self, speed: str) -> None:
        """Report what the link between the ranks does."""
        self._send("link", {"speed": speed})

    def __call__(self, progress: Progress) -> None:
        """Called once an iteration; rank 0 reports at most ten times a second, and at the end of a level."""
        self.check()
        now = time.monotonic()
        if now - self.last_memory > timeouts.MEMORY_INTERVAL:
            self.last_memory = now
            self._send("memory", {"rank": self.actor.rank, "resident": machine.resident_bytes()})
        if self.actor.rank == 0 and (
            now - self.last_progress > timeouts.PROGRESS_INTERVAL or progress.iteration == progress.iterations
        ):
            self.last_progress = now
            self._send("progress", vars(progress))

    def asked(self, *, level_end: bool = False) -> float:
        """STOP when the client said so; SAVE when rank 0's clock does."""
        requested = self.actor.requested
        if self.schedule.interval is None:
            return 0.0 if requested == SAVE else requested
        if self.actor.rank == 0 and self.schedule.due(level_end=level_end):
            return max(SAVE, requested)
        return requested

    def stopping(self) -> bool:
        """Whether the client said so. Raises Cancelled."""
        self.check()
        return self.actor.requested >= STOP

    def level_ended(self, level: LevelReport) -> None:
        """Report it; whoever asked for the next level has it."""
        if self.actor.requested == NEXT:
            self.actor.requested = 0.0
        if self.actor.rank == 0:
            self._send("level", self.job.as_stored(level.as_dict()))

    def resumed(self, place: Place) -> None:
        """Report it."""
        if self.actor.rank == 0:
            self._send("resumed", vars(place))

    def phase(self, name: str) -> None:
        """Report it."""
        if self.actor.rank == 0:
            self._send("phase", {"name": name})

    def compiling(self, kernels: int, most: int | None) -> None:
        """Report it."""
        self._send("compiling", {"kernels": kernels, "most": most})

    def masked(self, voxels: Sequence[int | None]) -> None:
        """Report it."""
        if self.actor.rank == 0:
            sizes = self.job.plan.fixed.size, self.job.plan.moving.size
            self._send("masked", {"voxels": list(voxels), "of": sizes})

    def saved(self, seconds: float) -> None:
        """A checkpoint was written; report where that takes longer than the interval allows."""
        if self.schedule.written(seconds) and self.actor.rank == 0:
            self._send("slow_checkpoint", {"seconds": seconds, "every": self.schedule.effective_interval})

    def slow_disk(self, waited: float, seconds: float, rate: float) -> None:
        """Report it."""
        self._send("slow_disk", {"rank": self.actor.rank, "waited": waited, "seconds": seconds, "rate": rate})

    def _send(self, kind: str, what: dict[str, Any]) -> None:
        self.worker.log_event(self.actor.group.run, {kind: what})


_actors: dict[str, RankActor] = {}  # by run, in the worker's process; a worker has at most one rank of a run


async def create_actor(group: RankGroup, dask_worker: Worker) -> Any:
    """Create this worker's rank of a group and open its endpoint; the endpoint's address."""
    actor = _actors[group.run] = RankActor(group, group.addresses.index(dask_worker.address))
    return await actor.open(dask_worker)


async def connect_actor(run: str, addresses: Sequence[Any]) -> None:
    """Connect this worker's rank to the endpoints of all ranks. Raises RankLost."""
    await _actors[run].connect(addresses)


def run_actor(job: RankJob, run: str, address: str, name: str) -> dict[str, Any]:
    """Run a job on this worker's rank, as a task. Raises RankLost on any other worker than the rank's own.

    Dask gives the task to another worker when the rank's own is lost.
    """
    actor = _actors.get(run)
    worker = get_worker()
    if actor is None or worker.address != address:
        raise RankLost(f"the worker of a rank ({name}) was lost; look at its log for the reason.")
    hide_normal_ends()
    end_soon(worker)
    return actor.run(job)


def request(run: str, what: float) -> None:
    """Ask this worker's rank to end its level, to save its state, or to save it and stop."""
    if (actor := _actors.get(run)) is not None:
        actor.requested = max(actor.requested, what)


async def release_actor(run: str) -> None:
    """Remove this worker's rank and close its endpoint."""
    if (actor := _actors.pop(run, None)) is not None:
        await actor.release()


def running() -> list[str]:
    """The runs that have a rank on this worker."""
    return list(_actors)

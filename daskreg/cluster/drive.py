"""Hand a job to a worker, watch it, and bring the report back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from distributed import Client, get_worker
from distributed.client import Future

from daskreg.cluster.job import Job, execute
from daskreg.engine.report import Progress
from daskreg.errors import InputError, RankLost, RunError

EVERY = 0.1  # seconds between two progress messages


class Cancelled(RunError):
    """The run was asked to stop."""


class Reporter:
    """Sends progress to whoever watches, and stops the loop once its task has been cancelled."""

    def __init__(self, topic: str) -> None:
        self.worker, self.topic, self.last = get_worker(), topic, 0.0
        self.key = self.worker.get_current_task()
        self.task = self.worker.state.tasks[self.key]

    def __call__(self, progress: Progress) -> None:
        """Called once an iteration; talks at most ten times a second, and at the end of a level."""
        if self.task.state != "executing":
            raise Cancelled("the run was stopped before it finished; nothing was written.")
        now = time.monotonic()
        if now - self.last > EVERY or progress.iteration == progress.iterations:
            self.last = now
            self.worker.log_event(self.topic, {"progress": vars(progress)})


def _task(job: Job, address: str, topic: str) -> dict[str, Any]:
    worker = get_worker()
    if worker.address != address:
        raise RankLost(f"the worker {address} was lost; nothing was written. Look at its log, then run again.")
    return execute(job, Reporter(topic))


def run_job(client: Client, job: Job, watch: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Run on one worker. Raises whatever the rank raised, and RankLost when its worker died; Ctrl-C stops the rank first."""
    address = _worker(client)
    topic = f"daskreg-{uuid.uuid4().hex}"
    if watch is not None:
        client.subscribe_topic(topic, lambda event: watch(Progress(**event[1]["progress"])))
    future = client.submit(
        _task, job, address, topic, key=topic, workers=[address], allow_other_workers=True, pure=False, retries=0
    )
    try:
        return future.result()
    except BaseException:
        _stop(client, future)
        raise
    finally:
        if watch is not None:
            client.unsubscribe_topic(topic)


def _worker(client: Client) -> str:
    client.wait_for_workers(1, timeout=60)
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise InputError("the Dask cluster has no worker; start at least one.")
    return str(workers[0])


def _stop(client: Client, future: Future[Any]) -> None:
    """Cancel and give the rank a moment to notice: it looks once an iteration."""
    if not future.done():
        future.cancel(force=True)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(client.processing().values()):
            time.sleep(0.05)

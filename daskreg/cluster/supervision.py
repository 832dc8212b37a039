"""Watch the ranks of a run until all have ended, find the failure behind their failures, and ask them to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, wait
from distributed.client import ClosedClientError, Future, FutureCancelledError, FuturesCancelledError
from distributed.comm.core import CommClosedError

from daskreg.cluster import timeouts
from daskreg.cluster.rank_actor import Cancelled, request
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.worker_calls import call_each, present, workers_of
from daskreg.engine.rank import STOP_MESSAGE
from daskreg.engine.report import STOP, LevelReport, Observer, Place, Progress
from daskreg.errors import RankLost, RunError, Stopped

log = logging.getLogger("daskreg")
FEW = 0.01  # share of an image: a mask that leaves less is hardly one of its structures
Futures = Sequence[Future[Any]]


@contextmanager
def scheduler_required() -> Iterator[None]:
    """Raises RunError in place of what Dask raises, in many forms, once the scheduler is gone."""
    try:
        yield
    except (CommClosedError, ClosedClientError, FutureCancelledError, FuturesCancelledError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"the Dask scheduler was lost ({what}); look at its log, then use --resume.") from error


def reports(client: Client, group: RankGroup, futures: Futures, observer: Observer) -> list[dict[str, Any]]:
    """What the ranks return, once all have ended. Raises the failure behind the first that is seen; a lost worker is one."""
    checked = time.monotonic()
    while pending := [f for f in futures if not f.done()]:
        with suppress(TimeoutError, FuturesCancelledError), client.as_current():
            wait(pending, timeout=timeouts.OBSERVER_INTERVAL, return_when="FIRST_COMPLETED")
        observer.tick()
        if _failed(futures):
            break
        if time.monotonic() - checked > timeouts.WORKER_CHECK_INTERVAL:
            require_workers(client, group, futures)
            checked = time.monotonic()
    if _failed(futures):
        raise root_cause(client, group, futures)
    return [_report(group, rank, future) for rank, future in enumerate(futures)]


def _report(group: RankGroup, rank: int, future: Future[Any]) -> dict[str, Any]:
    """What a rank has returned. Raises RankLost where its worker does not hand it over."""
    try:
        report: dict[str, Any] = future.result(timeout=timeouts.RESULT_TIMEOUT)
    except TimeoutError as error:
        waited = f"{timeouts.RESULT_TIMEOUT:.0f} s"
        raise RankLost(f"rank {rank} ({group.name(rank)}) has finished and did not answer for {waited}; run again.") from error
    return report


def root_cause(client: Client, group: RankGroup, futures: Futures) -> BaseException:
    """The failure behind the failures: ranks that lost another one, or were stopped, only report its consequence."""
    if any(f.status == "cancelled" for f in futures):
        return RunError(
            "the ranks were cancelled from outside: the Dask scheduler was lost, or somebody stopped them; look at its log."
        )
    own = [e for e in _errors(futures) if not isinstance(e, RankLost | Stopped)]
    if own:
        return own[0]
    with suppress(TimeoutError), client.as_current():
        wait(futures, timeout=timeouts.FAILURE_TIMEOUT)
    try:
        require_workers(client, group, futures)
    except RankLost as lost:
        return lost
    silent = [f"rank {rank} (" for rank, f in enumerate(futures) if not f.done()]
    # a rank that waits for one that waits for the silent one names the wrong rank
    return min(_errors(futures), key=lambda e: (isinstance(e, Stopped), not any(name in str(e) for name in silent)))


def require_workers(client: Client, group: RankGroup, futures: Futures) -> None:
    """Raise RankLost for a worker that is gone while its rank has not finished."""
    try:
        known = workers_of(client)
    except RunError:  # the client tries to reach the scheduler again, and cancels the tasks when it gives up
        return
    for rank, address in enumerate(group.addresses):
        if address not in known and futures[rank].status != "finished":
            raise RankLost(f"rank {rank} ({group.name(rank)}) was lost; look at that worker's log for the reason.")


def handle_event(group: RankGroup, event: dict[str, Any], observer: Observer) -> None:
    """Pass on what ranks report, and warn of a rank that is waited for, of slow checkpoints and of slow disks."""
    _pass_on(event, observer)
    if "link" in event:
        log.info("link between ranks: %s", event["link"]["speed"])
    if "masked" in event:
        _log_masks(**event["masked"])
    if "slow" in event:
        rank, by, seconds = event["slow"]["rank"], event["slow"]["by"], event["slow"]["seconds"]
        log.warning("rank %d (%s) has kept rank %d waiting for %.0f s", rank, group.name(rank), by, seconds)
    if "slow_disk" in event:
        disk = event["slow_disk"]
        log.warning(
            "rank %d (%s) waits for its scratch folder %.1f of the %.1f s of a sweep, which moves %.0f MB/s; a faster one "
            "(--scratch), more memory, or iterations_per_sweep of the stage would help",
            disk["rank"], group.name(disk["rank"]), disk["waited"], disk["seconds"], disk["rate"] / 1e6,
        )  # fmt: skip
    if "slow_checkpoint" in event:
        found = event["slow_checkpoint"]
        log.warning("a checkpoint takes %.1f s to write; the next ones are %.0f s apart", found["seconds"], found["every"])


def _log_masks(voxels: Sequence[int | None], of: Sequence[int]) -> None:
    """How much of each image its mask leaves; a warning where it is so little, or all, that the mask is likely another one."""
    for role, count, size in zip(("fixed", "moving"), voxels, of, strict=True):
        if count is not None:
            text = f"the {role} mask leaves {100 * count / size:.3g} % of the {role} image ({count} of {size} voxels)"
            doubt = "is it the right one, and are its voxel size, unit and place those of the image?"
            if count == size:
                log.warning("%s: its weights are above 0 everywhere, and it takes no voxel out; %s", text, doubt)
            elif count < FEW * size:
                log.warning("%s; %s", text, doubt)
            else:
                log.info("%s", text)


def _pass_on(event: dict[str, Any], observer: Observer) -> None:
    if "progress" in event:
        observer(Progress(**event["progress"]))
    if "level" in event:
        observer.level_ended(LevelReport(**event["level"]))
    if "resumed" in event:
        observer.resumed(Place(**event["resumed"]))
    if "phase" in event:
        observer.phase(event["phase"]["name"])
    if "compiling" in event:
        observer.compiling(event["compiling"]["kernels"], event["compiling"]["most"])
    if "memory" in event:
        observer.memory(event["memory"]["rank"], event["memory"]["resident"])


def stop_with_checkpoint(client: Client, group: RankGroup, futures: Futures) -> None:
    """Have all ranks write a checkpoint and end; returns when they have, or says after ``CHECKPOINT_TIMEOUT`` that not."""
    end = time.monotonic() + timeouts.CHECKPOINT_TIMEOUT
    log.warning("asked to stop: the ranks write a checkpoint first")
    call_each(client, present(client, group), request, group.run, STOP, seconds=timeouts.RESPONSE_TIMEOUT)
    while time.monotonic() < end and not all(f.done() for f in futures):
        if len(present(client, group)) < len(group.addresses):
            log.warning(
                "workers ended at the same time: there is no new checkpoint, the last one is what a resumed run goes on from"
            )
            return
        time.sleep(timeouts.DONE_CHECK_INTERVAL)
    if any(f.status == "finished" for f in futures):
        log.warning("a rank had passed its last level before it was asked: there is no new checkpoint")
    stopped = [str(e) for e in _errors(futures) if isinstance(e, Stopped) and not isinstance(e, Cancelled)]
    for reason in sorted({*stopped} - {STOP_MESSAGE}):
        log.warning("%s", reason)
    silent = [rank for rank, future in enumerate(futures) if not future.done()]
    if silent:
        log.warning(
            "no checkpoint within %.0f s: rank %d (%s) is reading, measuring or writing the result, or does not answer; "
            "stopping without a new one",
            timeouts.CHECKPOINT_TIMEOUT,
            silent[0],
            group.name(silent[0]),
        )


def _failed(futures: Futures) -> list[int]:
    return [rank for rank, f in enumerate(futures) if f.status in ("error", "lost", "cancelled")]


def _errors(futures: Futures) -> list[BaseException]:
    return [e for e in (futures[rank].exception() for rank in _failed(futures)) if e is not None]

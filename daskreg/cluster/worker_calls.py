"""Functions called on workers, and calls to the scheduler: what each returns or raises, within a deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed import Client

from daskreg.cluster import timeouts
from daskreg.cluster.job_queue import JobQueue
from daskreg.cluster.rank_group import RankGroup
from daskreg.errors import RankLost, RunError

log = logging.getLogger("daskreg")
Answers = dict[str, Any]


def within(client: Client, seconds: float, call: Callable[[], Awaitable[Any]]) -> Any:
    """What an asynchronous call returns on the client's event loop. Raises TimeoutError, also where that loop is blocked."""

    async def limited() -> Any:
        return await asyncio.wait_for(call(), seconds)

    return client.sync(limited, callback_timeout=seconds + timeouts.RESPONSE_TIMEOUT)


def workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler knows now of each worker, by address.

    Raises RunError when it does not answer within ``SCHEDULER_RESPONSE_TIMEOUT``.
    Not from ``client.scheduler_info``: the client refreshes that on its own, without the workers.
    """
    scheduler: Any = client.scheduler
    try:
        return dict(within(client, timeouts.SCHEDULER_RESPONSE_TIMEOUT, lambda: scheduler.identity(n_workers=-1))["workers"])
    except (OSError, RuntimeError) as error:  # RuntimeError: the client has given up and closed
        reason = str(error) or f"nothing for {timeouts.SCHEDULER_RESPONSE_TIMEOUT:.0f} s"
        raise RunError(f"the Dask scheduler does not answer: {reason}; look at its log, then use --resume.") from error


def awaited_workers(client: Client, number: int, seconds: float, queue: JobQueue | None = None) -> dict[str, Any]:
    """``workers_of``, once there are so many, or after so many seconds; how long it waits, and for what, in the log.

    queue: of the jobs whose workers these are; raises RunError where these cannot come.
    ``client.wait_for_workers`` counts lost ones for a while.
    """
    begun, wait = time.monotonic(), WaitReport(number)
    while len(known := workers_of(client)) < number and time.monotonic() < begun + seconds:
        wait.tell(len(known), time.monotonic() - begun, "" if queue is None else queue.look(known, number))
        time.sleep(timeouts.DONE_CHECK_INTERVAL)
    return known


@dataclass
class WaitReport:
    """Lines of the log about a wait for so many workers: less and less often, and where their jobs have changed."""

    number: int
    _due: float = -1.0
    _said: str = ""

    def tell(self, known: int, waited: float, jobs: str) -> None:
        """known: workers that are there;  waited: seconds so far;  jobs: what is known of those of the others"""
        due = self._due if self._due >= 0 else timeouts.WAIT_REPORT_INTERVAL
        if waited < due and jobs == self._said:
            return
        self._said, self._due = jobs, due
        if waited >= due:
            self._due = waited + min(waited, timeouts.LONGEST_REPORT_INTERVAL)
        log.info(
            "waiting for %d of %d workers, %s%s", self.number - known, self.number, span(waited), f"; {jobs}" if jobs else ""
        )


def span(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 5 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{minutes} min" if not hours else f"{hours} h {minutes} min" if minutes else f"{hours} h"


def call_each(
    client: Client,
    workers: Sequence[str],
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float,
    all_needed: bool = False,
    slow: Callable[[Sequence[str]], None] = lambda workers: None,
) -> Answers:
    """What a function returns or raises on each worker, TimeoutError of one that does not answer; the others are not held up.

    all_needed: whether one failure makes the other answers useless, so that nobody waits for them;  slow: called once with
    those that have not answered after ``SLOW_ANSWER``.
    """

    async def call(worker: str) -> Any:
        answer = client.run(function, *arguments, workers=[worker], on_error="return")
        return (await asyncio.wait_for(answer, seconds))[worker]

    async def call_all() -> Answers:
        calls = {worker: asyncio.ensure_future(call(worker)) for worker in workers}
        report = asyncio.get_running_loop().call_later(
            timeouts.SLOW_ANSWER, lambda: slow([worker for worker, c in calls.items() if not c.done()])
        )
        await _wait(calls, all_needed=all_needed)
        report.cancel()
        for unanswered in calls.values():
            unanswered.cancel()
        await asyncio.gather(*calls.values(), return_exceptions=True)
        return _answers(calls)

    answers: Answers = client.sync(call_all, callback_timeout=seconds + timeouts.RESPONSE_TIMEOUT) if workers else {}
    return answers


async def _wait(calls: Mapping[str, asyncio.Future[Any]], *, all_needed: bool) -> None:
    """Until all have answered; where all are needed until one has failed, and has had the time to be the cause."""
    pending, failed = set(calls.values()), False
    while pending:
        seconds = timeouts.FAILURE_TIMEOUT if failed else None
        done, pending = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        failures = [a for a in _answers(calls).values() if isinstance(a, BaseException)] if all_needed else []
        failed = bool(failures)
        if (failed and not done) or not all(isinstance(f, RankLost) for f in failures):
            return


def _answers(calls: Mapping[str, asyncio.Future[Any]]) -> Answers:
    """By worker; of those that have answered, or were lost."""
    return {worker: c.exception() or c.result() for worker, c in calls.items() if c.done() and not c.cancelled()}


def call_ranks(client: Client, group: RankGroup, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns on the worker of each rank. Raises RankLost for one that is lost or does not answer in time."""

    def slow(workers: Sequence[str]) -> None:
        for rank in map(group.addresses.index, workers):
            log.warning("rank %d (%s) has not answered for %.0f s", rank, group.name(rank), timeouts.SLOW_ANSWER)

    options: dict[str, Any] = {"seconds": group.deadline, "all_needed": True, "slow": slow}
    answers = call_each(client, group.addresses, function, *arguments, **options)
    for address, failure in _failures(answers):
        if isinstance(failure, OSError | KeyError):
            rank, reason = group.addresses.index(address), str(failure) or "no answer"
            raise RankLost(f"rank {rank} ({group.name(rank)}) was lost while the ranks were brought up: {reason}.") from failure
        raise failure
    return [answers[address] for address in group.addresses]


def _failures(answers: Answers) -> Iterator[tuple[str, BaseException]]:
    """Those of ranks that lost another one last: that one is the cause."""
    failed = [(worker, answer) for worker, answer in answers.items() if isinstance(answer, BaseException)]
    yield from sorted(failed, key=lambda found: isinstance(found[1], RankLost))


def ask_workers(client: Client, function: Callable[[], Any], what: str) -> Answers:
    """What a function returns on every worker, by address.

    what: the question, for messages. Raises RunError for a worker that is lost or does not answer in ``QUESTION_TIMEOUT``.
    """

    def slow(workers: Sequence[str]) -> None:
        log.warning(
            "worker %s has not said for %.0f s %s; at first it has to import daskreg", workers[0], timeouts.SLOW_ANSWER, what
        )

    answers = call_each(
        client, sorted(workers_of(client)), function, seconds=timeouts.QUESTION_TIMEOUT, all_needed=True, slow=slow
    )
    for worker, failure in _failures(answers):
        if isinstance(failure, OSError | KeyError):
            reason = str(failure) or "no answer"
            raise RunError(f"worker {worker} was lost before it said {what}: {reason}; run again.") from failure
        raise failure
    return answers


def ask_some(client: Client, function: Callable[[], Any], what: str) -> Answers:
    """As ``ask_workers``, of one worker at least. Raises RunError where none is left, too."""
    answers = ask_workers(client, function, what)
    if not answers:
        raise RunError(f"all workers were lost before they said {what}; look at their logs, then run again.")
    return answers


def present(client: Client, group: RankGroup) -> list[str]:
    """The workers of a group that the cluster still has; none where the scheduler does not answer."""
    return not_lost(client, group.addresses)


def not_lost(client: Client, workers: Sequence[str]) -> list[str]:
    """Those of some workers that the cluster still has: a lost one would be waited for in vain."""
    with suppress(RunError):
        known = workers_of(client)
        return [a for a in workers if a in known]
    return []

"""Functions called on workers: what each returns or raises, within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from distributed import Client

from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.workers import workers_of
from daskreg.errors import RankLost, RunError


def call_each(
    client: Client, workers: Sequence[str], function: Callable[..., Any], *arguments: Any, seconds: float
) -> dict[str, Any]:
    """What a function returns or raises on each worker, TimeoutError of one that does not answer; the others are not held up."""

    async def call(worker: str) -> Any:
        answer = client.run(function, *arguments, workers=[worker], on_error="return")
        return (await asyncio.wait_for(answer, seconds))[worker]

    async def call_all() -> Any:
        return await asyncio.gather(*map(call, workers), return_exceptions=True)

    return dict(zip(workers, client.sync(call_all), strict=True))


def call_ranks(client: Client, group: RankGroup, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns on the worker of each rank. Raises RankLost for one that is lost or does not answer in time."""
    results = call_each(client, group.addresses, function, *arguments, seconds=group.deadline)
    for rank, result in enumerate(results.values()):
        if isinstance(result, OSError | KeyError):
            reason = str(result) or "no answer"
            raise RankLost(f"rank {rank} ({group.name(rank)}) was lost while the ranks were brought up: {reason}.") from result
        if isinstance(result, BaseException):
            raise result
    return list(results.values())


def present(client: Client, group: RankGroup) -> list[str]:
    """The workers of a group that the cluster still has; none where the scheduler does not answer."""
    with suppress(RunError):
        known = workers_of(client)
        return [a for a in group.addresses if a in known]
    return []

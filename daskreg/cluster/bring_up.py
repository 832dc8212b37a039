"""Bring up the ranks of a run on their workers, cancel and release them."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dask
from distributed import Client
from distributed.client import Future

from daskreg import machine
from daskreg.cluster import timeouts
from daskreg.cluster.clients import is_embedded
from daskreg.cluster.job_queue import job_queue
from daskreg.cluster.link import TransportChoice, choose_transport, describe_link, nccl_shortcoming, require_nccl
from daskreg.cluster.rank_actor import connect_actor, create_actor, release_actor, run_actor
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.rank_job import RankJob
from daskreg.cluster.worker_calls import call_each, call_ranks, present, within, workers_of
from daskreg.comm import Abilities, abilities
from daskreg.errors import RankLost
from daskreg.kernels.device import Kind

log = logging.getLogger("daskreg")
MOST_BYTES = 1 << 60  # of a job, above which Dask would warn


def form_group(
    client: Client, members: Sequence[str], choice: TransportChoice, deadline: float, device: Kind = "cpu"
) -> RankGroup:
    """The group of these workers, one rank each, and its transport.

    Raises InputError where a worker lacks the transport asked for, RankLost where a worker is no longer there.
    """
    known = workers_of(client)
    for rank, address in enumerate(members):
        if address not in known:
            raise RankLost(
                f"rank {rank} ({address}) was lost before the ranks were brought up; look at that worker's log for the reason."
            )
    hosts = tuple(str(known[a]["host"]) for a in members)
    group = RankGroup(f"daskreg-{uuid.uuid4().hex}", tuple(members), hosts, (), "tcp", deadline)
    cores = _shared_cores(hosts, call_ranks(client, group, machine.cores))
    if job_queue(client) is not None:  # many batch systems leave it to a job to use no more cores than it has asked for
        cores = tuple(min(n, int(known[a]["nthreads"])) for n, a in zip(cores, members, strict=True))
    group = replace(group, cores=cores)
    if len(members) == 1:
        return group
    found = call_ranks(client, group, abilities)
    group = replace(group, same_memory=_same_memory(found))
    # our own cluster encrypts its connections against other users of this machine; they cannot open its ranks' memory
    closed = is_embedded(client) and group.same_memory
    by_worker = dict(zip(group.names, found, strict=True))
    nccl = choice == "nccl"
    if nccl:
        lacking = call_ranks(client, group, nccl_shortcoming) if device == "cuda" else ()
        require_nccl(dict(zip(group.names, lacking, strict=False)), device, same_memory=group.same_memory)
    transport = choose_transport(by_worker, choice, device, encrypted=group.encrypted and not closed)
    log.info("%d ranks over %s", len(members), describe_link(transport, by_worker, device, nccl=nccl))
    return replace(group, transport=transport, nccl=nccl)


def _same_memory(found: Sequence[Abilities]) -> bool:
    """Whether all ranks share the memory of one machine."""
    return len({f.memory for f in found}) == 1 and bool(found[0].memory)


def _shared_cores(hosts: Sequence[str], limits: Sequence[machine.Limit]) -> tuple[int, ...]:
    """Cores of each rank: its share of those that ranks of one machine may use together."""
    keys = [(host, limit.source) for host, limit in zip(hosts, limits, strict=True)]
    sharing = Counter(keys)
    return tuple(max(1, limit.value // sharing[key]) for limit, key in zip(limits, keys, strict=True))


def start_actors(client: Client, group: RankGroup) -> None:
    """Create a rank on every worker, and connect all of them. Raises RankLost."""
    addresses = call_ranks(client, group, create_actor, group)
    if group.size > 1:
        call_ranks(client, group, connect_actor, group.run, addresses)


def submit(client: Client, group: RankGroup, job: RankJob) -> list[Future[Any]]:
    """Hand the job to every rank, a task each."""
    # tasks bound to a worker that is lost would wait for it for good: on another one they fail at once
    options: dict[str, Any] = {"allow_other_workers": True, "pure": False, "retries": 0}
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": MOST_BYTES}):  # of arrays that are in this process
        return [
            client.submit(run_actor, job, group.run, address, group.name(r), key=f"{group.run}-{r}", workers=[address], **options)
            for r, address in enumerate(group.addresses)
        ]


def cancel(client: Client, group: RankGroup, futures: Sequence[Future[Any]]) -> None:
    """Cancel ranks that still run; returns when they have ended, or after ``CANCEL_TIMEOUT``."""
    if all(f.done() for f in futures):
        return
    end = time.monotonic() + timeouts.CANCEL_TIMEOUT
    with suppress(TimeoutError):  # of a scheduler that does not answer: there is nothing more to do
        within(client, timeouts.CANCEL_TIMEOUT, lambda: client.cancel(list(futures), force=True))
        while time.monotonic() < end and _busy(client, group):
            time.sleep(timeouts.DONE_CHECK_INTERVAL)


def release(client: Client, group: RankGroup) -> None:
    """Remove the ranks from their workers and close their endpoints."""
    call_each(client, present(client, group), release_actor, group.run, seconds=timeouts.RESPONSE_TIMEOUT)


def _busy(client: Client, group: RankGroup) -> bool:
    """Whether a rank of this run still works."""
    working: dict[str, Any] = within(client, timeouts.CANCEL_TIMEOUT, client.processing)
    return any(str(key).startswith(group.run) for keys in working.values() for key in keys)

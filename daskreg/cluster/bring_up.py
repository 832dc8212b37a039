"""Bring up the ranks of a run on their workers, cancel and release them."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from distributed import Client
from distributed.client import Future

from daskreg import machine
from daskreg.cluster.clients import is_embedded
from daskreg.cluster.rank_actor import connect_actor, create_actor, release_actor, run_actor
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.rank_job import RankJob
from daskreg.cluster.timeouts import CANCEL_TIMEOUT, DONE_CHECK_INTERVAL, RESPONSE_TIMEOUT
from daskreg.cluster.worker_calls import call_each, call_ranks, present
from daskreg.cluster.workers import workers_of
from daskreg.comm import Abilities, Transport, abilities
from daskreg.errors import InputError

log = logging.getLogger("daskreg")
TransportChoice = Transport | Literal["auto"]


def form_group(client: Client, members: Sequence[str], choice: TransportChoice, deadline: float) -> RankGroup:
    """The group of these workers, one rank each, and its transport. Raises InputError where a worker lacks the one asked for."""
    known = workers_of(client)
    hosts = tuple(str(known[a]["host"]) for a in members)
    group = RankGroup(f"daskreg-{uuid.uuid4().hex}", tuple(members), hosts, (), "tcp", deadline)
    group = replace(group, cores=_shared_cores(hosts, call_ranks(client, group, machine.cores)))
    if len(members) == 1:
        return group
    found = call_ranks(client, group, abilities)
    group = replace(group, same_memory=_same_memory(found))
    # our own cluster encrypts its connections against other users of this machine; they cannot open its ranks' memory
    closed = is_embedded(client) and group.same_memory
    transport = _choose([f.transports for f in found], choice, group.encrypted and not closed)
    log.info("%d ranks over %s", len(members), transport)
    return replace(group, transport=transport)


def _same_memory(found: Sequence[Abilities]) -> bool:
    """Whether all ranks share the memory of one machine."""
    return len({f.memory for f in found}) == 1 and bool(found[0].memory)


def _shared_cores(hosts: Sequence[str], limits: Sequence[machine.Limit]) -> tuple[int, ...]:
    """Cores of each rank: its share of those that ranks of one machine may use together."""
    keys = [(host, limit.source) for host, limit in zip(hosts, limits, strict=True)]
    sharing = Counter(keys)
    return tuple(max(1, limit.value // sharing[key]) for limit, key in zip(limits, keys, strict=True))


def _choose(transports: Sequence[Sequence[Transport]], choice: TransportChoice, encrypted: bool = False) -> Transport:
    """The transport asked for. Where that is left open UCX, if every worker has it and the cluster does not encrypt; else TCP.

    encrypted: whether what ranks send must be encrypted, which UCX cannot. Raises InputError.
    """
    if choice == "auto":
        return "ucx" if not encrypted and all("ucx" in found for found in transports) else "tcp"
    if not all(choice in found for found in transports):
        raise InputError(f"--comm {choice}: not every worker can; install the extra 'ucx' there, or use --comm tcp.")
    if choice == "ucx" and encrypted:
        log.warning(
            "--comm ucx: this cluster encrypts its connections (TLS) and UCX does not: ranks send voxels and displacements in "
            "the clear; use --comm tcp to encrypt them."
        )
    return choice


def start_actors(client: Client, group: RankGroup) -> None:
    """Create a rank on every worker, and connect all of them. Raises RankLost."""
    addresses = call_ranks(client, group, create_actor, group)
    if group.size > 1:
        call_ranks(client, group, connect_actor, group.run, addresses)


def submit(client: Client, group: RankGroup, job: RankJob) -> list[Future[Any]]:
    """Hand the job to every rank, a task each."""
    # tasks bound to a worker that is lost would wait for it for good: on another one they fail at once
    options: dict[str, Any] = {"allow_other_workers": True, "pure": False, "retries": 0}
    return [
        client.submit(run_actor, job, group.run, address, group.name(r), key=f"{group.run}-{r}", workers=[address], **options)
        for r, address in enumerate(group.addresses)
    ]


def cancel(client: Client, group: RankGroup, futures: Sequence[Future[Any]]) -> None:
    """Cancel ranks that still run; returns when they have ended, or after ``CANCEL_TIMEOUT``."""
    if all(f.done() for f in futures):
        return
    client.cancel(list(futures), force=True)
    end = time.monotonic() + CANCEL_TIMEOUT
    while time.monotonic() < end and _busy(client, group):
        time.sleep(DONE_CHECK_INTERVAL)


def release(client: Client, group: RankGroup) -> None:
    """Remove the ranks from their workers and close their endpoints."""
    call_each(client, present(client, group), release_actor, group.run, seconds=RESPONSE_TIMEOUT)


def _busy(client: Client, group: RankGroup) -> bool:
    """Whether a rank of this run still works."""
    return any(str(key).startswith(group.run) for keys in client.processing().values() for key in keys)

from __future__ import annotations

import asyncio
import os

import dask
import numpy as np
import pytest

from daskreg.comm import Timeouts, open_endpoint
from daskreg.errors import RankLost
from tests.unit.comm.ranks import SECRET, run_in_processes


def die(comm):
    """Rank 1 dies once the others have asked for its message."""
    if comm.rank == 1:
        for peer in (0, 2):
            comm.receive(peer, []).wait()
        os._exit(9)
    pending = comm.receive(1, [np.zeros(4)])
    comm.send(1, []).wait()
    pending.wait()


def die_while_sent_to(comm):
    """Rank 1 dies once the others have begun; they send until they notice."""
    if comm.rank == 1:
        for peer in (0, 2):
            comm.receive(peer, [np.zeros(200_000)]).wait()
        os._exit(9)
    for _ in range(10_000):
        comm.send(1, [np.zeros(200_000)]).wait()


@pytest.mark.parametrize("part", [die, die_while_sent_to])
@pytest.mark.parametrize(
    ("kind", "apart", "deadline", "what"),
    [
        ("tcp", True, 60.0, "was lost"),
        ("ucx", True, 60.0, "was lost"),
        ("ucx", False, 2.0, "was silent"),  # in shared memory nobody tells of a death
    ],
)
def test_every_waiting_rank_names_a_killed_process(kind, apart, deadline, what, part):
    if kind == "ucx":
        pytest.importorskip("ucxx")
    found = run_in_processes(kind, 3, part, apart=apart, deadline=deadline)
    assert found[1] is None
    for rank in (0, 2):
        assert isinstance(found[rank], RankLost), found
        assert f"rank 1 (process 1) {what}" in str(found[rank])


@pytest.mark.parametrize("kind", ["tcp", "ucx"])
def test_an_endpoint_can_be_closed_at_any_time_and_ends_every_wait(kind):
    if kind == "ucx":
        pytest.importorskip("ucxx")

    async def scene():
        endpoints = [
            await open_endpoint(kind, "run", r, ["a", "b"], Timeouts(deadline=60), "127.0.0.1", secret=SECRET) for r in range(2)
        ]
        await asyncio.gather(*[p.connect([q.address for q in endpoints], ["host"] * 2) for p in endpoints])
        early, late = [endpoints[0].communicator.receive(1, [np.zeros(1)]) for _ in range(2)]
        waits = [asyncio.create_task(asyncio.to_thread(early.wait))]
        for endpoint in (endpoints[0], endpoints[0], endpoints[1]):
            await endpoint.close()
        unconnected = await open_endpoint(kind, "other", 0, ["a", "b"], Timeouts(), "127.0.0.1", secret=SECRET)
        await unconnected.close()
        waits += [asyncio.create_task(asyncio.to_thread(late.wait))]
        return await asyncio.gather(*waits, return_exceptions=True)

    for found in asyncio.run(scene()):
        assert isinstance(found, RankLost)
        assert "rank 1 (b) was lost: this rank closed its endpoint" in str(found)


def test_a_rank_that_cannot_be_reached_over_tcp_is_named():
    async def scene():
        gone, endpoint = [
            await open_endpoint("tcp", "run", r, ["a", "b"], Timeouts(), "127.0.0.1", secret=SECRET) for r in range(2)
        ]
        await gone.close()
        try:
            await endpoint.connect([gone.address, endpoint.address], ["host"] * 2)
        finally:
            await endpoint.close()

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(RankLost, match=r"rank 0 \(a\) was lost"),
    ):
        asyncio.run(scene())

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskreg.comm import SingleRank, available_transports, local
from tests.unit.comm.ranks import Ranks, run_on_workers

BACKENDS = ["threads", "tcp", "ucx"]
SIZES = 1, 2, 3, 5
ALL = [("single", 1), *((kind, size) for kind in BACKENDS for size in SIZES)]


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as found,
    ):
        yield found


@pytest.fixture
def ranks(request):
    """``ranks(kind, size, part)``: what ``part(communicator)`` returned on each."""

    def run(kind, size, part):
        if kind == "single":
            return [part(SingleRank())]
        if kind == "threads":
            return local.run(size, part)
        if kind == "ucx":
            pytest.importorskip("ucxx")
        return run_on_workers(request.getfixturevalue("client"), kind, size, part)

    return run


def sample(source, n):
    """What rank ``source`` sends as its n-th message: arrays of many kinds, empty ones too."""
    rng = np.random.default_rng([source, n])
    return [
        rng.integers(0, 255, (n, 3, 5)).astype(np.uint8),
        rng.normal(size=(2, 7)).astype(np.float32),
        np.zeros((0, 4), np.float64),
        np.array(source + 1j * n),
        rng.normal(size=n) > 0,
        rng.integers(-9, 9, 3),
    ]


def round_the_ring(comm, sizes):
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for n in sizes:
        into = [np.empty_like(a) for a in sample(left, n)]
        comm.exchange([(right, sample(comm.rank, n))], [(left, into)], "ring")
        for a, b in zip(into, sample(left, n), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", BACKENDS)
def test_arrays_of_any_shape_and_dtype_arrive_unchanged(ranks, kind):
    ranks(kind, 3, partial(round_the_ring, sizes=[0, 1, 2, 400]))


def large(comm):
    other = 1 - comm.rank
    into = [np.empty(n, np.float32) for n in (300_000, 5, 2_000_000)]
    sent = [np.arange(a.size, dtype=np.float32) + comm.rank for a in into]
    comm.exchange([(other, sent)], [(other, into)], "large")
    return all((a - b == other - comm.rank).all() for a, b in zip(into, sent, strict=True)), dict(comm.traffic)


@pytest.mark.parametrize("kind", BACKENDS)
def test_large_and_small_arrays_are_one_message_and_counted_as_traffic(ranks, kind):
    assert ranks(kind, 2, large) == [(True, {"large": 4 * 2_300_005})] * 2


def in_order(comm):
    if comm.rank == 1:
        pending = [comm.send(0, [np.full(3, n)]) for n in range(20)]
        pending += [comm.send(0, []), comm.send(0, [np.zeros((0, 2))]), comm.send(0, [np.array(20.0)])]
        for message in pending:
            message.wait()
            message.wait()
        return None
    into = [np.empty(3, np.int64) for _ in range(20)]
    pending = [comm.receive(1, [a]) for a in into]
    nothing, last = [comm.receive(1, []), comm.receive(1, [np.zeros((0, 2))])], np.empty(())
    comm.receive(1, [last]).wait()
    for message in [*nothing, *reversed(pending)]:
        message.wait()
        message.wait()
    return [int(a[0]) for a in into], float(last)


@pytest.mark.parametrize("kind", BACKENDS)
def test_messages_arrive_in_order_for_any_order_of_waits(ranks, kind):
    assert ranks(kind, 2, in_order)[0] == (list(range(20)), 20.0)


def reuse(comm):
    if comm.rank == 1:
        array = np.empty(300_000)
        for n in range(5):
            array[:] = n
            comm.send(0, [array]).wait()
            array[:] = -1
        return None
    into = [np.empty(300_000) for _ in range(5)]
    for array in into:
        comm.receive(1, [array]).wait()
    return [bool((a == n).all()) for n, a in enumerate(into)]


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_sent_array_may_be_changed_after_the_wait(ranks, kind):
    assert ranks(kind, 2, reuse)[0] == [True] * 5


def early_and_late(comm):
    """Rank 0 sends everything before anybody listens, and asks only when its answer has long been there."""
    other, reported = 1 - comm.rank, np.empty(1)
    small, big, empty = np.full(4, comm.rank), np.full(200_000, comm.rank), np.empty(0)
    into = [np.empty_like(small), np.empty_like(big), np.empty(0)]
    if comm.rank == 0:
        sent = comm.send(1, [small, big, empty])
        comm.receive(1, [reported]).wait()
    else:
        comm.send(0, [np.ones(1)]).wait()
        sent = comm.send(0, [small, big, empty])
    comm.receive(other, into).wait()
    sent.wait()
    return bool((into[0] == other).all() and (into[1] == other).all())


@pytest.mark.parametrize("kind", BACKENDS)
def test_messages_may_be_sent_before_or_after_they_are_asked_for(ranks, kind):
    assert ranks(kind, 2, early_and_late) == [True, True]


def waits_for_a_slow_one(comm):
    """Rank 1 answers only after rank 0 has complained of its silence."""
    reported, answer = [], np.empty(1)
    if comm.rank == 1:
        comm.receive(0, [answer]).wait()
        comm.send(0, [np.full(1, 7.0)]).wait()
        return None

    def complain(rank, seconds):
        reported.append(rank)
        comm.send(1, [np.zeros(1)]).wait()

    comm.timeouts.warn_after, comm.timeouts.on_slow = 0.0, complain
    comm.receive(1, [answer]).wait()
    return reported, float(answer[0])


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_slow_rank_is_reported_once_and_not_lost(ranks, kind):
    assert ranks(kind, 2, waits_for_a_slow_one)[0] == ([1], 7.0)


class Stopped(Exception):
    pass


def stop():
    raise Stopped


@pytest.mark.parametrize("kind", ["tcp", "ucx"])
def test_stopping_a_run_ends_a_wait(client, kind):
    if kind == "ucx":
        pytest.importorskip("ucxx")
    group = Ranks(client, kind, 2)
    found = group.run_part(give_up)
    group.close()
    assert found == ["stopped", None]


def give_up(comm):
    if comm.rank == 1:
        return None
    comm.timeouts.check = stop
    try:
        comm.receive(1, [np.empty(3)]).wait()
    except Stopped:
        return "stopped"
    return "received"


def together(comm):
    rank, size = comm.rank, comm.size
    comm.barrier()
    np.testing.assert_array_equal(
        comm.gather(np.full((2, 3), rank, np.int16)), np.arange(size)[:, None, None] * np.ones((1, 2, 3))
    )
    np.testing.assert_array_equal(comm.gather(np.zeros((0, 2))), np.zeros((size, 0, 2)))
    np.testing.assert_array_equal(comm.sum_counts(np.array([1, rank, 2**40])), [size, size * (size - 1) // 2, size * 2**40])
    np.testing.assert_array_equal(comm.max(np.array([rank, -rank], float)), [size - 1, 0])
    np.testing.assert_array_equal(comm.broadcast(np.array([rank + 5.0])), [5.0])
    comm.barrier()
    return True


@pytest.mark.parametrize(("kind", "size"), ALL)
def test_collective_operations(ranks, kind, size):
    assert ranks(kind, size, together) == [True] * size


PLANES = np.random.default_rng(1).normal(size=(4, 23)) * 10.0 ** np.arange(-8, 15)


def planes(comm):
    cuts = [0, *sorted((np.arange(1, comm.size) ** 2 * 23 // comm.size**2).tolist()), 23]
    mine = PLANES[:, cuts[comm.rank] : cuts[comm.rank + 1]]
    return comm.sum_planes(mine, np.diff(cuts).tolist()).tobytes()


@pytest.mark.parametrize(("kind", "size"), ALL)
def test_a_sum_over_planes_is_bitwise_the_same_for_any_partition(ranks, kind, size):
    assert set(ranks(kind, size, planes)) == {np.ascontiguousarray(PLANES).sum(axis=1).tobytes()}


@pytest.mark.parametrize("kind", ["tcp", "ucx"])
def test_messages_of_two_runs_in_the_same_processes_stay_apart(client, kind):
    if kind == "ucx":
        pytest.importorskip("ucxx")
    groups = [Ranks(client, kind, 3), Ranks(client, kind, 2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda group: group.run_part(partial(round_the_ring, sizes=[3, 50] * 5)), groups))
    for group in groups:
        group.close()
    assert found == [[None] * 3, [None] * 2]


def disagree(comm):
    if comm.rank == 0:
        comm.send(1, [np.zeros(3)]).wait()
    else:
        comm.receive(0, [np.zeros(4)]).wait()


def test_a_message_of_another_shape_raises(ranks):
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\).*same plan"):
        ranks("threads", 2, disagree)


def test_tcp_is_always_available():
    assert available_transports()[-1] == "tcp"


def test_the_first_thread_that_fails_stops_the_others_and_its_error_is_raised():
    seen = []

    def part(comm):
        if comm.rank == 2:
            raise ZeroDivisionError("here")
        try:
            comm.receive((comm.rank + 1) % 2, [np.empty(1)]).wait()
        except Exception as error:
            seen.append(str(error))
            raise

    with pytest.raises(ZeroDivisionError, match="here"):
        local.run(3, part)
    assert len(seen) == 2
    assert all("rank 2 (thread 2) was lost: ZeroDivisionError: here" in message for message in seen)


def test_waiting_for_a_thread_that_has_ended_raises():
    with pytest.raises(Exception, match=r"rank 1 \(thread 1\) was lost: it ended"):
        local.run(2, lambda comm: comm.rank == 0 and comm.receive(1, [np.empty(1)]).wait())


def test_communicators_for_threads_of_the_caller():
    first, second = local.communicators(2)
    first.send(1, [np.arange(3)]).wait()
    into = np.empty(3, int)
    second.receive(0, [into]).wait()
    assert into.tolist() == [0, 1, 2]

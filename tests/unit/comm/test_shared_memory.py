"""Allgather through memory that ranks of one machine share."""

from __future__ import annotations

import math
import os
from functools import partial

import numpy as np
import pytest

from daskreg.comm import Timeouts, local, shared_memory, use_shared_memory
from daskreg.comm.shared_memory import HEADER, SLOT_BYTES, TOKEN_BYTES, SharedMemoryAllgather
from daskreg.errors import RankLost
from tests.unit.comm.ranks import run_in_processes


def shared(part, comm, hosts=None):
    use_shared_memory(comm, hosts or ["here"] * comm.size)
    return part(comm)


def sums(comm, rounds=60):
    """What is gathered, of changing sizes and types, some too large for a slot."""
    found = []
    for k in range(rounds):
        size = (0, 1, 6, 1024, SLOT_BYTES // 8, SLOT_BYTES)[k % 6]
        mine = np.full(size, comm.rank + 10 * k, (np.float64, np.int64)[k % 2])
        table = comm.gather(mine)
        assert table.dtype == mine.dtype
        np.testing.assert_array_equal(table, np.stack([np.full(size, r + 10 * k) for r in range(comm.size)]))
        found.append(comm.max(np.array([float(comm.rank)]))[0])
    return comm.shared_gather is not None, set(found), dict(comm.traffic)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shared_memory_gathers_the_same_as_messages(size):
    before = len(os.listdir("/proc/self/fd"))
    there, plain = local.run(size, partial(shared, sums)), local.run(size, sums)
    assert [used for used, _, _ in there] == [True] * size
    assert [used for used, _, _ in plain] == [False] * size
    assert all(found == {size - 1.0} for _, found, _ in there)
    assert len(os.listdir("/proc/self/fd")) <= before + size  # what is still mapped


def test_shared_memory_counts_the_traffic_of_the_messages_it_replaces():
    def one(comm):
        comm.gather(np.zeros(6))
        return comm.traffic["sum"]

    assert len(set(local.run(3, one))) == 1

    def other(comm):
        use_shared_memory(comm, ["here"] * comm.size)
        comm.traffic.clear()
        return one(comm)

    assert local.run(3, other) == local.run(3, one)


@pytest.mark.parametrize("kind", ["tcp", "ucx"])
def test_processes_gather_through_shared_memory(kind):
    if kind == "ucx":
        pytest.importorskip("ucxx")
    for used, found, _ in run_in_processes(kind, 3, partial(shared, sums), apart=False, deadline=30):
        assert used
        assert found == {2.0}


def test_ranks_of_several_machines_use_messages():
    for used, _, _ in local.run(2, partial(shared, sums, hosts=["here", "there"])):
        assert not used


@pytest.mark.parametrize("broken", ["_create", "_map"])
def test_all_ranks_use_messages_if_one_cannot_map_the_memory(monkeypatch, broken):
    plain, calls = getattr(shared_memory, broken), []

    def once(*given):
        calls.append(1)
        return None if len(calls) == 1 else plain(*given)

    monkeypatch.setattr(shared_memory, broken, once)
    for used, found, _ in local.run(3, partial(shared, sums)):
        assert not used
        assert found == {2.0}


def test_a_full_shared_memory_file_system_leaves_no_file_open(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert shared_memory._create(1 << 20) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_file_at_the_same_path_is_not_mapped():
    mine, other = shared_memory._create(4096), shared_memory._create(4096)
    place = shared_memory._describe(mine)
    assert shared_memory._map(place, 4096) is not None
    assert shared_memory._map(bytes(TOKEN_BYTES) + place[TOKEN_BYTES:], 4096) is None
    os.dup2(other, mine)
    assert shared_memory._map(place, 4096) is None
    os.close(mine)
    assert shared_memory._map(place, 4096) is None
    os.close(other)


def test_a_slot_that_is_partly_written_or_of_another_gather_is_not_valid():
    comm = local.communicators(2)[0]
    made = SharedMemoryAllgather(bytearray(4 * (HEADER.size + SLOT_BYTES)), comm)
    made.number = 1
    made._write(b"12345678", 7)
    assert made._read(0) == (b"12345678", 7)
    at = made._offset(0) + HEADER.size
    made.memory[at + 3 : at + 4] = b"x"
    assert made._read(0) is None
    made._write(b"12345678", 7)
    made.number = 3
    assert made._read(0) is None


def test_a_silent_rank_is_lost_after_the_deadline():
    comm = local.communicators(2, Timeouts(deadline=0.2))[0]
    with pytest.raises(RankLost, match=r"rank 1 .* was silent"):
        SharedMemoryAllgather(bytearray(4 * (HEADER.size + SLOT_BYTES)), comm).gather(np.zeros(3))


def test_a_failed_rank_ends_the_wait_before_the_deadline():
    """The others know at once, as over messages."""

    def part(comm):
        use_shared_memory(comm, ["here"] * 3)
        if comm.rank == 1:
            raise OSError("disk full")
        comm.gather(np.zeros(3))

    with pytest.raises(OSError, match="disk full"):
        local.run(3, part, timeouts=Timeouts(deadline=math.inf))


@pytest.mark.parametrize(
    "others",
    [np.zeros(4), np.zeros((3, 1)), np.zeros(3, np.int64), np.zeros(SLOT_BYTES)],
    ids=["longer", "shape", "type", "no room"],
)
def test_arrays_that_differ_between_ranks_raise(others):
    def part(comm):
        use_shared_memory(comm, ["here"] * 2)
        comm.gather((np.zeros(3), others)[comm.rank])

    with pytest.raises(ValueError, match="both sides must run the same plan"):
        local.run(2, part, timeouts=Timeouts(deadline=20))

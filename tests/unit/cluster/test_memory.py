"""What a worker may use and what its process takes: found on the workers, or estimated from this process."""

from types import SimpleNamespace

import pytest

from daskreg import machine
from daskreg.cluster import process_size, worker_calls
from daskreg.cluster import workers as cluster_workers
from daskreg.cluster.process_size import estimated_bytes, running_bytes, start_bytes
from daskreg.cluster.workers import gpu_limit, memory_limit
from daskreg.errors import PlanTooLarge, RunError
from daskreg.machine import Limit
from daskreg.workflows import register as workflow

GIB = 1 << 30


def client(monkeypatch, **workers):
    """A client of workers that are given as (host, Dask's limit, the limit of its process)."""
    known = {a: {"host": host, "memory_limit": own, "name": a} for a, (host, own, _) in workers.items()}
    monkeypatch.setattr(cluster_workers, "workers_of", lambda _: known)
    limits = {a: limit for a, (*_, limit) in workers.items()}
    monkeypatch.setattr(cluster_workers, "ask_workers", lambda client, question, what: limits)
    return SimpleNamespace()


def test_a_single_worker_may_use_the_whole_limit(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: Limit(8 * GIB, "the physical memory"))
    assert memory_limit(None, 1) == Limit(8 * GIB, "the physical memory")
    assert memory_limit(None, 2) == Limit(4 * GIB, "1/2 of the physical memory, 8.0 GiB")


def test_workers_share_a_gpu_and_the_fullest_one_counts(monkeypatch):
    answers = {"a": ("here 1", 70), "b": ("here 1", 80), "c": ("here 2", 50)}
    monkeypatch.setattr(worker_calls, "ask_workers", lambda client, question, what: answers)
    assert gpu_limit(SimpleNamespace()).value == 35
    answers.clear()
    with pytest.raises(RunError, match="all workers were lost before they said what its GPU has"):
        gpu_limit(SimpleNamespace())


def test_the_smallest_worker_counts(monkeypatch):
    found = client(monkeypatch, a=("here", 0, Limit(8 * GIB, "x")), b=("there", 0, Limit(6 * GIB, "y")))
    assert memory_limit(found, 2) == Limit(6 * GIB, "y")


def test_workers_of_one_container_share_it_and_those_of_several_do_not(monkeypatch):
    """Two on a machine with a common limit, two with a cgroup each."""
    together = client(monkeypatch, a=("here", 0, Limit(8 * GIB, "x")), b=("here", 0, Limit(8 * GIB, "x")))
    assert memory_limit(together, 2) == Limit(4 * GIB, "1/2 of x, 8.0 GiB")
    apart = client(monkeypatch, a=("here", 0, Limit(8 * GIB, "job 1")), b=("here", 0, Limit(8 * GIB, "job 2")))
    assert memory_limit(apart, 2).value == 8 * GIB


def test_dasks_own_limit_counts_up_to_that_of_the_machine(monkeypatch):
    found = client(monkeypatch, a=("here", 5 * GIB, Limit(8 * GIB, "x")), b=("here", 5 * GIB, Limit(8 * GIB, "x")))
    assert memory_limit(found, 2) == Limit(5 * GIB, "the memory limit of the Dask worker a")
    found = client(monkeypatch, a=("here", 9 * GIB, Limit(8 * GIB, "x")))
    assert memory_limit(found, 1) == Limit(8 * GIB, "x")


def test_a_plan_that_does_not_fit_names_the_limit_and_its_source(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "memory", lambda: Limit(GIB // 4, "the cgroup limit /sys/fs/cgroup/job_7/memory.max"))
    from daskreg.workflows.demo import demo_pair

    with pytest.raises(PlanTooLarge, match=r"a worker has 256 MiB \(the cgroup limit /sys/fs/cgroup/job_7/memory.max\)"):
        workflow.register(*demo_pair(3), output=tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_existing_workers_are_measured(monkeypatch):
    answers = {start_bytes: {"a": 300, "b": 360}}
    monkeypatch.setattr(worker_calls, "ask_workers", lambda client, question, what: answers[question])
    assert estimated_bytes(SimpleNamespace(), 2) == running_bytes(360) == 432
    answers[start_bytes] = {}
    with pytest.raises(RunError, match="all workers were lost before they said how much memory its process takes"):
        estimated_bytes(SimpleNamespace(), 2)


def test_without_workers_the_size_of_this_process_counts(monkeypatch):
    monkeypatch.setattr(machine, "resident_bytes", lambda: 400 << 20)
    assert estimated_bytes(None, 1) == estimated_bytes(None, 4) == 700 << 20


def test_data_of_the_caller_counts_for_a_worker_in_this_process_only(monkeypatch):
    monkeypatch.setattr(machine, "resident_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(process_size, "_in_new_process", lambda: 300 << 20)
    assert estimated_bytes(None, 1) == 8 * GIB + (384 << 20)
    assert estimated_bytes(None, 4) == estimated_bytes(None, 1, elsewhere=True) == 525 << 20


def test_a_new_process_is_measured_with_what_a_rank_imports():
    assert 100 << 20 < process_size._in_new_process() < start_bytes() * 2

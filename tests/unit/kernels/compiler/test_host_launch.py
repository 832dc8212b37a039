"""The rows of a launch are computed once each, by threads that live as long as the process."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from daskreg.kernels.compiler import host_launch
from daskreg.kernels.compiler.host_launch import LEAST_VOXELS, PARTS, launch, set_thread_count, thread_count
from daskreg.kernels.jacobian import jacobian

MANY = 10**9  # voxels


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """For launches from any thread, on a machine with any number of cores."""
    monkeypatch.setattr(host_launch, "_most_threads", lambda: 3)
    monkeypatch.setattr(host_launch, "_OWN", threading.local())  # other tests have chosen for this thread


def counted(items, voxels=MANY):
    """How often each item is computed, and in how many parts."""
    counts, parts = np.zeros(items, np.int64), []

    def kernel(begin, end, counts):
        parts.append((begin, end))
        counts[begin:end] += 1

    launch(kernel, items, voxels, [counts])
    return counts, parts


@pytest.mark.parametrize("items", [1, 2, 3, 7, 12, 13, 1000])
def test_each_item_is_computed_once(items):
    counts, parts = counted(items)
    assert (counts == 1).all()
    assert len(parts) == (1 if items == 1 else min(items, 3 * PARTS))


def test_nothing_is_launched_for_nothing():
    assert counted(0, 0)[1] == [(0, 0)]


def test_little_work_is_not_shared_out():
    assert len(counted(1000, 2 * LEAST_VOXELS - 1)[1]) == 1
    assert len(counted(1000, 2 * LEAST_VOXELS)[1]) == 2


def test_several_threads_compute_at_the_same_time():
    together = threading.Barrier(3)
    launch(lambda begin, end: together.wait(30), 3, MANY, [])
    assert not together.broken


def test_a_thread_may_use_fewer_than_others():
    with ThreadPoolExecutor(1, initializer=set_thread_count, initargs=(1,)) as pool:
        assert pool.submit(lambda: (thread_count(), len(counted(100)[1]))).result() == (1, 1)
        assert thread_count() == 3
        assert pool.submit(set_thread_count, 7).result() is None
        assert pool.submit(thread_count).result() == 3


def test_what_a_part_raises_is_raised_after_all_have_ended():
    ended = []

    def kernel(begin, end):
        if begin == 0:
            raise ValueError("a wrong row")
        ended.append(end)

    with pytest.raises(ValueError, match="a wrong row"):
        launch(kernel, 3 * PARTS, MANY, [])
    assert len(ended) == 3 * PARTS - 1
    assert (counted(100)[0] == 1).all()  # and its threads go on


def test_threads_are_kept():
    counted(100)
    before = host_launch.HELPERS._threads
    for _ in range(20):
        counted(100)
    named = [t for t in threading.enumerate() if t.name.startswith(host_launch.NAME)]
    assert host_launch.HELPERS._threads == before == len(named) >= 2
    assert all(t.daemon for t in named)  # a process that ends does not wait for them


def launched_by_several(threads):
    """Jacobians of the identity by several Python threads at the same time: their values."""

    def compute(_):
        for _ in range(20):
            made = np.empty((8, 64, 64), np.float32)
            jacobian(made.shape, 0, np.zeros((3, 8, 64, 64), np.float32), made)
        return float(made.min()), float(made.max())

    with ThreadPoolExecutor(threads) as pool:
        return set(pool.map(compute, range(8)))


def test_python_threads_launch_at_the_same_time():
    assert launched_by_several(4) == {(1.0, 1.0)}


def test_a_forked_process_has_threads_of_its_own():
    """The threads of its parent do not live in it: a launch that waited for them would never end."""
    assert launched_by_several(2) == {(1.0, 1.0)}
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(60)
    still_there = child.is_alive()
    child.kill()
    assert (still_there, child.exitcode) == (False, 0)


def _in_child():
    together = threading.Barrier(3)
    launch(lambda begin, end: together.wait(30), 3, MANY, [])
    assert launched_by_several(2) == {(1.0, 1.0)}

"""Whether forked processes can use a GPU."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import dask
import pytest

from daskreg import fork_server
from daskreg.cluster import clients, gpu_driver
from daskreg.fork_server import FRESH_METHOD, METHOD


def driver(*, initialised, works=True):
    """CUDA's, before or after it is initialised."""
    state = SimpleNamespace(ready=initialised)

    def initialise(flags):
        state.ready = works
        return 0 if works else 3

    return SimpleNamespace(cuInit=initialise, cuDeviceGetCount=lambda count: 0 if state.ready else 3)


@pytest.mark.parametrize(
    ("found", "expected"), [(driver(initialised=True), True), (driver(initialised=False), False), (None, False)]
)
def test_a_driver_that_answers_is_initialised(monkeypatch, found, expected):
    monkeypatch.setattr(gpu_driver, "_driver", lambda: found)
    assert gpu_driver.initialised() is expected


@pytest.mark.parametrize(
    ("found", "code"), [(driver(initialised=False), 0), (driver(initialised=False, works=False), 1), (None, 1)]
)
def test_a_process_tells_whether_it_can_use_one(monkeypatch, found, code):
    monkeypatch.setattr(gpu_driver, "_driver", lambda: found)
    with pytest.raises(SystemExit) as end:
        gpu_driver.initialise()
    assert end.value.code == code


@pytest.mark.parametrize("code", [0, 1, None])
def test_it_is_tried_in_a_forked_process(monkeypatch, caplog, code):
    process = SimpleNamespace(start=lambda: None, join=lambda seconds: None, kill=lambda: None, exitcode=code)
    monkeypatch.setattr(gpu_driver, "ForkedProcess", lambda **options: process)
    with caplog.at_level(logging.INFO, "daskreg"):
        assert gpu_driver.usable_when_forked() is (code == 0)
    assert ("started afresh" in caplog.text) is (code != 0)


def test_a_process_that_cannot_be_started_is_no_error_yet(monkeypatch):
    def refuse():
        raise AssertionError("daemonic processes are not allowed to have children")

    monkeypatch.setattr(gpu_driver, "ForkedProcess", lambda **options: SimpleNamespace(start=refuse))
    assert gpu_driver.usable_when_forked() is False


@pytest.mark.parametrize("usable", [False, True])
def test_workers_are_forked_where_they_can_use_their_gpus(monkeypatch, usable):
    monkeypatch.setattr(clients, "fork_server", lambda device: nullcontext(True))
    monkeypatch.setattr(clients, "usable_when_forked", lambda: usable)
    with clients._started_by("cuda"):
        assert (dask.config.get("distributed.worker.multiprocessing-method") == METHOD) is usable


def test_nothing_is_tried_without_a_server(monkeypatch):
    monkeypatch.setattr(fork_server, "_possible", lambda: False)
    monkeypatch.setattr(clients, "usable_when_forked", lambda: pytest.fail("a process was started"))
    with clients._started_by("cuda"):
        assert dask.config.get("distributed.worker.multiprocessing-method") == FRESH_METHOD

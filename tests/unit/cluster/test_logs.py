"""Dask's loggers are silent while an embedded cluster lives, and as before afterwards."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
from distributed import Client, LocalCluster

from daskreg.cluster import clients, embedded_client, existing_client, logs
from daskreg.cluster.logs import silenced
from daskreg.errors import RankLost


def levels():
    """Of all loggers, and of the handlers of Dask's."""
    known = {name: x.level for name, x in logging.root.manager.loggerDict.items() if isinstance(x, logging.Logger)}
    return known, [handler.level for handler in logging.getLogger("distributed").handlers]


@pytest.fixture
def chatty(monkeypatch):
    """Loggers that a user has asked for, one below another; what they say ends up in a list."""
    said = []

    class Handler(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler, names = Handler(), ("distributed", "distributed.scheduler", "dask_cuda", "distributed.worker.memory")
    before = {name: logging.getLogger(name).level for name in names}
    logging.getLogger("distributed.worker.memory").setLevel(logging.DEBUG)
    for name in names[:3:2]:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
    yield said
    for name in names[:3:2]:
        logging.getLogger(name).removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def speak():
    logging.getLogger("distributed.scheduler").info("a worker came")
    logging.getLogger("distributed.worker.memory").debug("some memory")
    logging.getLogger("dask_cuda").info("a GPU")


def test_loggers_are_silent_inside_and_as_before_outside(chatty):
    before = levels()
    with silenced():
        speak()
        assert chatty == []
        logging.getLogger("distributed.scheduler").critical("no memory")
    assert levels() == before
    speak()
    assert chatty == ["no memory", "a worker came", "some memory", "a GPU"]


def test_the_last_of_several_clusters_restores_the_levels(chatty):
    before = levels()
    first, second = silenced(), silenced()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    speak()
    assert chatty == []
    second.__exit__(None, None, None)
    assert levels() == before


def test_clusters_of_several_threads_restore_the_levels(chatty):
    def one(_):
        with silenced():
            speak()

    before = levels()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(200)))
    assert chatty == []
    assert levels() == before


def test_a_level_that_was_set_meanwhile_is_kept(chatty):
    with silenced():
        logging.getLogger("dask_cuda").setLevel(logging.DEBUG)
    assert logging.getLogger("dask_cuda").level == logging.DEBUG


def test_an_embedded_cluster_restores_the_levels(chatty):
    before = levels()
    with embedded_client(1):
        speak()
    assert chatty == []
    after = levels()
    assert {name: after[0][name] for name in before[0]} == before[0]
    assert after[1] == before[1]


def test_a_client_of_the_user_is_not_touched(chatty):
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0", threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as mine,
    ):
        before = levels()
        with existing_client(mine) as found:
            assert found is mine
            assert levels() == before
    assert chatty  # Dask's own lines, as asked for


class CudaCluster:
    """In place of dask_cuda's: says as much as that one."""

    def __init__(self, **options):
        speak()
        self.options = options


def test_a_cuda_cluster_starts_without_log_messages(chatty, monkeypatch):
    fake = ModuleType("dask_cuda")
    fake.LocalCUDACluster = CudaCluster
    monkeypatch.setitem(sys.modules, "dask_cuda", fake)
    monkeypatch.setattr(clients, "gpus", lambda: 2)
    with silenced():
        found = clients._start(2, None, "cuda")
    assert chatty == []
    assert found.options["silence_logs"] == logging.CRITICAL  # which it hands on to its workers


PROGRAM = """
import logging, os

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    from daskreg.cluster import embedded_client

    before = set(os.environ)
    with embedded_client(2) as client:
        print(len(client.run(os.getpid)))
    print(sorted(name for name in set(os.environ) - before if "LOG" in name))
"""


def test_a_program_that_logs_everything_shows_nothing_of_an_embedded_cluster(tmp_path):
    """It has a handler at the root, as the command line has, before ``distributed`` is imported."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(clients.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["2", "[]"]
    lines = [line for line in done.stderr.splitlines() if not line.startswith("INFO:daskreg:dashboard")]
    assert lines == []


@pytest.mark.parametrize(("error", "kept"), [(RankLost("a rank was lost."), True), (ValueError("no"), False), (None, False)])
def test_what_workers_log_is_kept_and_named_where_a_run_fails(monkeypatch, tmp_path, error, kept):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = [*logs.ROOTS, *logs.LOOPS]
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names}
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        with pytest.raises(type(error)) if error else nullcontext() as caught, logs.worker_log():
            logs.log_to_file()  # as in a worker's process
            logging.getLogger("distributed.worker").info("killed by signal 9")
            logging.getLogger("asyncio").error("Future exception was never retrieved")
            if error:
                raise error
    finally:
        for name, (handlers, propagate) in before.items():
            for handler in logging.getLogger(name).handlers:
                handler.close()
            logging.getLogger(name).handlers[:], logging.getLogger(name).propagate = handlers, propagate
            logging.getLogger(name).setLevel(levels[name])
    files = list(tmp_path.iterdir())
    assert len(files) == kept
    if kept:
        assert "killed by signal 9" in files[0].read_text()
        assert "never retrieved" in files[0].read_text()
        assert files[0].stat().st_mode & 0o077 == 0
        assert str(files[0]) in str(caught.value.__notes__)
    assert logs.LOG_FILE not in os.environ


@pytest.mark.parametrize(
    ("failure", "logged"), [(TimeoutError("Timeout"), False), (TimeoutError("no answer"), True), (ValueError("Timeout"), True)]
)
def test_a_wait_of_dask_that_ends_when_a_cluster_is_closed_is_not_logged(caplog, failure, logged):
    """Asyncio says so where its future is collected, which may be after the cluster has been closed."""

    async def wait():
        asyncio.get_running_loop().create_future().set_exception(failure)

    with silenced():
        pass
    asyncio.run(wait())
    gc.collect()
    assert ("Future exception was never retrieved" in caplog.text) is logged


@pytest.mark.parametrize(("place", "logged"), [("sync.<locals>.cancel", False), ("poll", True)])
def test_an_interrupt_before_a_call_of_dask_has_begun_is_not_logged(caplog, place, logged):
    with silenced():
        pass
    try:
        raise NameError("cannot access free variable 'future' where it is not associated with a value in enclosing scope")
    except NameError:
        logging.getLogger("tornado.application").error("Exception in callback %r", place, exc_info=True)
    assert ("Exception in callback" in caplog.text) is logged

"""Clusters: what is known of their workers, encrypted connections, and how a small one of our own ends."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client, Lock
from distributed.security import Security

from daskreg import MSE, Affine, Deformable
from daskreg.cluster import embedded_client, timeouts
from daskreg.cluster import run as cluster_run
from daskreg.cluster.worker_calls import workers_of
from daskreg.config import Config
from daskreg.errors import RunError
from daskreg.grid import Grid
from daskreg.storage import write_image
from tests.integration.workers import SOCKETS, cluster, processes, run, same
from tests.phantoms import known_warp_pair

pytestmark = SOCKETS
STAGES = [Affine(similarity=MSE(), scales=(2,), iterations=(3,)), Deformable(similarity=MSE(), scales=(2, 1), iterations=(4, 4))]


@pytest.fixture(scope="module")
def images():
    return known_warp_pair((34, 28, 30), 2.0, 0)[:2]


@pytest.mark.slow
def test_ranks_of_an_encrypted_cluster_use_tls(images):
    """Self-made certificates, which everybody needs, and no choice of transport; the result is that of one worker."""
    security = Security.temporary()
    with cluster(2, security=security, protocol="tls://") as client:
        assert all(address.startswith("tls://") for address in workers_of(client))
        alone = run(client, *images, STAGES, workers=1)
        client.run(note_links)
        found = run(client, *images, STAGES, workers=2, residency="ring")
        links = client.run(noted_link)
    assert all(address.startswith("tls://") for address in links.values())
    assert same(alone, found).bits


def note_links():
    """On a worker: keep the address at which its rank listens."""
    from daskreg.comm import tcp

    real = tcp.TcpEndpoint.open

    async def opened(*arguments):
        endpoint = await real(*arguments)
        tcp.listened_at = endpoint.address
        return endpoint

    tcp.TcpEndpoint.open = opened


def noted_link():
    from daskreg.comm import tcp

    return tcp.listened_at


def test_workers_are_known_while_the_client_refreshes_its_own_list(monkeypatch):
    """The client asks for all but the workers from time to time, on a thread of its own."""
    with cluster(1) as client:
        real = client.sync

        def interrupted(function, *args, **options):
            answer = real(function, *args, **options)
            real(client._update_scheduler_info)
            return answer

        monkeypatch.setattr(client, "sync", interrupted)
        assert not client.scheduler_info(n_workers=-1)["workers"]
        assert len(workers_of(client)) == 1


def test_a_run_that_waits_for_another_on_its_worker_warns(monkeypatch, caplog):
    monkeypatch.setattr(timeouts, "LOCK_WARNING_DELAY", 0.2)
    entered = []

    def second(client, members):
        with cluster_run.locked(client, members):
            entered.append(time.monotonic())

    with cluster(2) as client, Client(client.scheduler.address, set_as_default=False) as other:
        members = sorted(workers_of(client))
        with cluster_run.locked(client, members):
            thread = threading.Thread(target=second, args=(other, members[::-1]))
            thread.start()
            while "is busy with another registration" not in caplog.text:
                time.sleep(0.05)
            released = time.monotonic()
        thread.join()
    assert entered
    assert entered[0] > released
    assert f"worker {members[0]} is busy with another registration; waiting for it" in caplog.text


HOLDS_A_LOCK = """
import sys, time
from distributed import Client
from daskreg.cluster.run import locked

client = Client(sys.argv[1], set_as_default=False)
with locked(client, sys.argv[2:]):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_client_loses_its_locks():
    leases = {"LEASE_TIMEOUT": "5s", "LEASE_VALIDATION_INTERVAL": "200ms"}  # the scheduler checks, who locks says how long
    environment = {f"DASK_DISTRIBUTED__SCHEDULER__LOCKS__{name}": value for name, value in leases.items()}
    with dask.config.set({"distributed.scheduler.locks.lease-validation-interval": "200ms"}), cluster(1) as client:
        members = sorted(workers_of(client))
        command = [sys.executable, "-c", HOLDS_A_LOCK, client.scheduler.address, *members]
        with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as holder:
            try:
                assert holder.stdout.readline() == "locked\n"
                time.sleep(6)  # longer than a lease, which the client renews
                lock = Lock(f"daskreg-{members[0]}", scheduler_rpc=client.scheduler, loop=client.loop)
                assert not lock.acquire(timeout=0.2)
            finally:
                holder.kill()
        with cluster_run.locked(client, members):
            assert members


def test_embedded_workers_exit_without_being_killed(caplog):
    """Nobody has to kill them, and no process stays."""
    with caplog.at_level("WARNING", "distributed.nanny"), embedded_client(2) as client:
        there = [psutil.Process(pid) for pid in processes(client)]
        assert len(there) == 2
    assert not any(p.is_running() for p in there)
    assert "killing" not in caplog.text


@contextmanager
def separate_processes():
    """A scheduler, its address, and a list of processes that end with it: itself, two workers, and what is added."""
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    started = [scheduler := subprocess.Popen(program, stderr=subprocess.PIPE, text=True)]
    try:
        address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        started += [subprocess.Popen(worker, stderr=subprocess.DEVNULL) for _ in range(2)]
        yield scheduler, address, started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_run_whose_scheduler_is_lost_raises(images):
    """A cluster whose parts are processes of their own, as on a batch system."""
    with separate_processes() as (scheduler, address, _), Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(5000,), tolerance=0)]
        with pytest.raises(RunError, match="scheduler was lost"):
            run(client, *images, stages, workers=2, comm="tcp", progress=lambda reported: scheduler.kill())


@pytest.mark.slow
def test_the_command_line_says_one_sentence_when_the_scheduler_is_lost(images, tmp_path):
    """And keeps the checkpoint; Dask says nothing beside it."""
    for name, voxels in zip(("fixed", "moving"), images, strict=True):
        write_image(tmp_path / f"{name}.zarr", voxels, Grid(voxels.shape))
    stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(100_000,), tolerance=0)]
    (tmp_path / "recipe.yaml").write_text(Config.of_stages(stages).dump())
    with separate_processes() as (scheduler, address, started):
        fixed, moving, output, recipe = (str(tmp_path / n) for n in ("fixed.zarr", "moving.zarr", "run.zarr", "recipe.yaml"))
        words = ["register", fixed, moving, "-o", output, "--config", recipe, "--cluster", address]
        command = [sys.executable, "-m", "daskreg.cli", *words, "--comm", "tcp", "--checkpoint-every", "1"]
        started.append(driver := subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()))
        while driver.poll() is None and not list(tmp_path.glob("*run.zarr*/checkpoint/latest.json")):
            time.sleep(0.1)
        scheduler.kill()
        said = driver.communicate(timeout=240)[1]
    assert driver.returncode == 1, said
    assert "Traceback" not in said
    assert "the Dask scheduler was lost" in said.splitlines()[-2]
    assert f"--resume -o {output}" in said.splitlines()[-1]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

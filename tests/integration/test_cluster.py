"""Clusters: what is known of their workers, encrypted connections, and how a small one of our own ends."""

import subprocess
import sys

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from daskreg import MSE, Affine, Deformable
from daskreg.cluster import embedded_client
from daskreg.cluster.workers import workers_of
from daskreg.errors import RunError
from tests.integration.workers import SOCKETS, cluster, processes, run, same
from tests.phantoms import known_warp_pair

pytestmark = SOCKETS
STAGES = [Affine(similarity=MSE(), scales=(2,), iterations=(3,)), Deformable(similarity=MSE(), scales=(2, 1), iterations=(4, 4))]


@pytest.fixture(scope="module")
def images():
    return known_warp_pair((34, 28, 30), 2.0, 0)[:2]


def test_ranks_of_an_encrypted_cluster_talk_over_tls(images):
    """Self-made certificates, which everybody needs; the result is that of one worker."""
    security = Security.temporary()
    with cluster(2, security=security, protocol="tls://") as client:
        assert all(address.startswith("tls://") for address in workers_of(client))
        alone = run(client, *images, STAGES, workers=1)
        client.run(note_links)
        found = run(client, *images, STAGES, workers=2, comm="tcp", residency="ring")
        links = client.run(noted_link)
    assert all(address.startswith("tls://") for address in links.values())
    assert same(alone, found).bits


def note_links():
    """On a worker: keep the address at which its rank listens."""
    from daskreg.comm import tcp

    real = tcp.listen

    async def listen(*args, **options):
        listener = await real(*args, **options)
        tcp.listened_at = listener.contact_address
        return listener

    tcp.listen = listen


def noted_link():
    from daskreg.comm import tcp

    return tcp.listened_at


def test_a_refresh_of_the_client_in_between_hides_no_worker(monkeypatch):
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


def test_workers_of_our_own_leave_by_themselves(caplog):
    """Nobody has to kill them, and no process stays."""
    with caplog.at_level("WARNING", "distributed.nanny"), embedded_client(2) as client:
        there = [psutil.Process(pid) for pid in processes(client)]
        assert len(there) == 2
    assert not any(p.is_running() for p in there)
    assert "killing" not in caplog.text


@pytest.mark.slow
def test_a_run_whose_scheduler_is_gone_ends_and_says_so(images):
    """A cluster whose parts are processes of their own, as on a batch system."""
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    started = [scheduler := subprocess.Popen(program, stderr=subprocess.PIPE, text=True)]
    try:
        address = next(line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        started += [subprocess.Popen(worker, stderr=subprocess.DEVNULL) for _ in range(2)]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(5000,), tolerance=0)]
            with pytest.raises(RunError, match="scheduler was lost"):
                run(client, *images, stages, workers=2, comm="tcp", progress=lambda told: scheduler.kill())
    finally:
        for process in started:
            process.kill()
            process.communicate()

"""A cluster that daskreg starts is closed to other users of the machine: its ports, its folders, what it imports."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from daskreg.cluster import embedded_client
from daskreg.cluster.isolation import temporary_security
from tests.hostile import listening, visible
from tests.integration.workers import SOCKETS, processes

pytestmark = SOCKETS


def status(url):
    """The answer of an HTTP server."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("workers", [1, 2])
def test_all_ports_are_of_this_machine_and_give_nothing_to_who_does_not_know_the_path(workers, caplog):
    caplog.set_level("INFO", "daskreg")
    before = listening(os.getpid())
    with embedded_client(workers) as client:
        pids = {os.getpid(), *processes(client)}
        ports = {address for pid in pids for address in listening(pid)} - before
        scratch = client.run(lambda dask_worker: dask_worker.local_directory)
        for folder in scratch.values():
            assert visible(Path(folder)) == "a folder above is closed"
        dashboard = re.search(r"dashboard: (http://127\.0\.0\.1:(\d+)/\S{20,}/status)", caplog.text)
        assert status(dashboard[1]) == 200
        for path in ("", "status", "info/main/workers.html", "metrics", "json/counts.json", "static/js/bokeh.min.js"):
            assert status(f"http://127.0.0.1:{dashboard[2]}/{path}") in (403, 404)
    assert {host for host, _ in ports} == {"127.0.0.1"}
    if workers == 1:
        assert len(ports) == 2, "of HTTP; Dask's messages stay in memory"
    assert not any(map(os.path.exists, scratch.values()))


def test_a_client_without_the_certificate_is_refused():
    with embedded_client(2) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for security in (None, Security.temporary()):
            place = address.replace("tls://", "tcp://") if security is None else address
            with pytest.raises((OSError, TimeoutError)):
                Client(place, security=security, timeout=2, set_as_default=False)


def test_certificates_are_made_in_a_moment_and_never_twice():
    started = time.perf_counter()
    first, second = temporary_security(), temporary_security()
    assert time.perf_counter() - started < 2
    assert first.tls_worker_key != second.tls_worker_key
    assert first.require_encryption


PLANTED = """
import os
from pathlib import Path
Path(__file__).with_suffix(".executed").touch()
raise ImportError("planted")
"""
PROGRAM = """
import os

if __name__ == "__main__":
    from daskreg.cluster import embedded_client
    from daskreg.cluster.process_size import _in_new_process

    with embedded_client(2) as client:
        assert len(client.run(os.getpid)) == 2
    assert _in_new_process() > 0
    assert "PYTHONSAFEPATH" not in os.environ
"""


def test_nothing_is_imported_from_the_working_directory_nor_from_a_shared_scratch_folder(tmp_path):
    """Where others may write, as in /tmp: modules that every new process of Python imports."""
    scratch = tmp_path / "tmp"
    planted = [tmp_path / "work", scratch / "dask-scratch-space"]
    for folder in planted:
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        for module in ("random", "struct", "socket", "dask", "numpy", "daskreg", "matplotlib"):
            (folder / f"{module}.py").write_text(PLANTED)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": root}
    environment.pop("PYTHONSAFEPATH", None)
    subprocess.run([sys.executable, str(program)], cwd=planted[0], env=environment, check=True, timeout=240)
    assert [p for folder in planted for p in folder.glob("*.executed")] == []
    assert [p.name for p in scratch.iterdir()] == ["dask-scratch-space"], "its own folder is removed"


def test_the_temporary_folder_of_dask_is_ours_only_while_the_cluster_lives():
    import dask

    with embedded_client(1) as client:
        folder = next(iter(client.run(lambda dask_worker: dask_worker.local_directory).values()))
        above = Path(folder).parents[1]
        assert above.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(above.stat().st_mode) == 0o700
    assert dask.config.get("temporary-directory") is None


DRIVER = """
import ctypes, os, sys, time

def busy():
    ctypes.PyDLL(None).sleep(60)  # holds Python's lock

if __name__ == "__main__":
    from daskreg.cluster import embedded_client
    with embedded_client(2) as client:
        print(*client.run(os.getpid).values(), flush=True)
        futures = [client.submit(busy, pure=False) for _ in range(2)]
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="by the kernel of Linux")
def test_no_worker_outlives_a_killed_driver_by_five_seconds(tmp_path):
    """Not even while it holds Python's lock, so that none of its threads can notice."""
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, str(tmp_path / "driver.py")], env=environment, stdout=subprocess.PIPE) as driver:
        workers = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        time.sleep(1)
        driver.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []


OPENED = """
import sys, urllib.request
from daskreg.cluster.clients import embedded_client
with embedded_client() as client:
    scheduler = client.cluster.scheduler
    address = f"http://127.0.0.1:{scheduler.http_server.port}"
    for path, known in ("status", False), (f"{scheduler.prefix}/status", True), (f"{scheduler.prefix}/status", True):
        try:
            answer = urllib.request.urlopen(f"{address}/{path}", timeout=60).status
        except urllib.error.HTTPError as error:
            answer = error.code
        assert answer == (200 if known else 404), answer
        assert ("bokeh" in sys.modules) == known
"""


@pytest.mark.slow
def test_bokeh_is_imported_by_who_opens_the_dashboard_and_knows_where_it_is():
    done = subprocess.run([sys.executable, "-c", OPENED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""The fork server: processes that have everything imported, with the environment and the end that new ones have."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from daskreg import fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are started afresh there")
CONTEXT = multiprocessing.get_context(fork_server.METHOD)
MODULE = "colorsys"  # imported quickly, and by nothing else


def told(pipe, name):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    pipe.send((os.getppid(), MODULE in sys.modules, os.environ.get(name), os.environ.get("PYTHONPATH"), sorted(blocked)))


def ask(name=""):
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=told, args=(theirs, name))
    process.start()
    found = ours.recv()
    process.join()
    assert process.exitcode == 0
    return found


@pytest.fixture(autouse=True, scope="module")
def few_modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_server, "MODULES", {"cpu": (MODULE,)})
        yield


@pytest.fixture(scope="module")
def server():
    with fork_server.fork_server("cpu"):
        yield fork_server._server


def test_a_process_has_the_modules_and_the_environment_of_its_start(server, monkeypatch):
    monkeypatch.setenv("DASKREG_TEST", "set later")
    parent, imported, value, path, blocked = ask("DASKREG_TEST")
    assert (parent, imported, value, path) == (vars(server)["_forkserver_pid"], True, "set later", os.environ.get("PYTHONPATH"))
    assert blocked == sorted(fork_server.TERMINAL_SIGNALS)  # answered by the process that has started the server alone


def test_a_server_has_one_thread(server):
    ask()
    assert psutil.Process(vars(server)["_forkserver_pid"]).num_threads() == 1


def preloaded(pipe):
    pipe.send((sorted(sys.modules), psutil.Process(os.getppid()).num_threads()))


def test_what_workers_import_leaves_one_thread_and_what_has_threads_of_its_own_to_them():
    """The tests' own server has it too. Threads are not forked: what needs some is imported afterwards."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=preloaded, args=(theirs,))
    process.start()
    modules, threads = ours.recv()
    process.join()
    assert threads == 1
    assert {"zarr", "dask.array", "daskreg.cluster.rank_actor", "numba.np.arrayobj"} <= set(modules)
    assert not {"daskreg.storage.zarr.codecs", "zarrs._internal"} & set(modules)


def test_the_exit_code_of_a_killed_process_is_known_to_all_threads(server):
    process = CONTEXT.Process(target=time.sleep, args=(60,))
    process.start()
    found = []
    threads = [threading.Thread(target=lambda: (process._popen.wait(), found.append(process._popen.poll()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    process.kill()
    for thread in threads:
        thread.join()
    process.join()
    assert found == [-signal.SIGKILL] * 8


def test_without_a_server_and_after_it_was_lost_processes_are_started_afresh_or_forked_by_a_new_one(server):
    ask()
    lost = vars(server)["_forkserver_pid"]
    os.kill(lost, signal.SIGKILL)
    parent, *_ = ask()
    assert parent in (os.getpid(), vars(server)["_forkserver_pid"])
    assert ask()[0] == vars(server)["_forkserver_pid"] != lost


def test_where_there_is_none_processes_are_started_afresh(monkeypatch):
    monkeypatch.setattr(fork_server, "_server", None)
    assert ask()[:2] == (os.getpid(), False)


def test_a_server_that_cannot_be_started_is_not_missed(monkeypatch):
    def refused(*_):
        raise OSError("no memory")

    monkeypatch.setattr(fork_server, "_server", None)
    monkeypatch.setattr(fork_server, "_users", 0)
    monkeypatch.setattr(fork_server, "Server", refused)
    with fork_server.fork_server("cpu"):
        assert ask()[0] == os.getpid()


def test_the_last_user_ends_it(monkeypatch):
    monkeypatch.setattr(fork_server, "_server", None)
    monkeypatch.setattr(fork_server, "_users", 0)
    with fork_server.fork_server("cpu"):
        with fork_server.fork_server("cpu"):
            server = psutil.Process(vars(fork_server._server)["_forkserver_pid"])
        assert server.is_running()
    assert not server.is_running()


SCRIPT = """
import multiprocessing, os
from daskreg import fork_server
print("the script runs", flush=True)
with fork_server.fork_server("cpu"):
    for method in (fork_server.METHOD, fork_server.FRESH_METHOD):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=queue.put, args=(method,))
        process.start()
        print(queue.get(), flush=True)
        process.join()
        assert process.exitcode == 0
"""


def test_processes_do_not_import_the_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "the script runs\ndaskreg\ndaskreg-fresh\n", done.stderr


PROGRAM = """
import multiprocessing, os, time
from daskreg import fork_server
if __name__ == "__main__":
    fork_server.MODULES = {"cpu": ("ends",)}
    with fork_server.fork_server("cpu"):
        process = multiprocessing.get_context(fork_server.METHOD).Process(target=time.sleep, args=(60,))
        process.start()
        print(vars(fork_server._server)["_forkserver_pid"], process.pid, flush=True)
        os.kill(os.getpid(), 9)
"""


def test_it_and_its_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    (tmp_path / "ends.py").write_text("from daskreg import machine; machine.end_with_parent()")
    path = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(10)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

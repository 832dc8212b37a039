"""Processes forked by one that has imported what they need: Python's fork server, for the clusters of this process.

A worker's process that Python starts afresh imports for two seconds before it does anything. One that is forked has the modules
at once, also where it takes the place of a killed one. The server is started before its cluster is, and imports while this
process reads headers and plans. On Linux only: elsewhere, and where the server fails, processes are started afresh.

Forking is safe: the server has one thread and has not used a GPU; it imports and forks, and nothing else.

Neither way imports the script that registers, as Python's own do: a script without a main guard would register in each worker.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import context, popen_forkserver, popen_spawn_posix, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.forkserver import ForkServer, read_signed
from multiprocessing.reduction import dump
from typing import Any

import psutil

from daskreg import machine

log = logging.getLogger(__name__)
METHOD = "daskreg"  # the name of this way to start processes, beside Python's "spawn" and "forkserver"
FRESH_METHOD = "daskreg-fresh"  # without a server
MOST_FAILURES = 2  # after which a server is not asked again
TERMINAL_SIGNALS = signal.SIGINT, signal.SIGHUP
MODULES = {"cpu": ("daskreg.cluster.forked",), "cuda": ("daskreg.cluster.forked", "daskreg.cluster.forked_cuda")}  # by device
VARIABLES = {  # as Dask's nanny sets them for a process that it starts: libraries read them when they are loaded
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_lock = threading.Lock()
_server: Server | None = None
_users = 0


@contextmanager
def fork_server(device: str) -> Iterator[bool]:
    """A server for processes that are started meanwhile by ``METHOD``; where one is there, that one goes on.

    device: of the workers, "cpu" or "cuda". They get the environment that this process has when they are started. Gives whether
    there is a server.
    """
    _enter(MODULES[device], {name: os.environ.get(name, value) for name, value in VARIABLES.items()})
    try:
        yield _server is not None
    finally:
        _leave()


def _enter(modules: Sequence[str], variables: Mapping[str, str]) -> None:
    global _server, _users
    with _lock:
        _users += 1
        if _server is None and _possible():
            try:
                _server = Server(modules, variables)
            except OSError as problem:
                log.info("there is no fork server (%r).", problem)


def _leave() -> None:
    global _server, _users
    with _lock:
        _users -= 1
        if _users:
            return
        server, _server = _server, None
    if server is not None:
        server.close()


def _possible() -> bool:
    """Whether a new interpreter finds the same modules, and processes end with those that have started them."""
    return sys.platform == "linux" and not (getattr(sys, "frozen", False) or sys.flags.ignore_environment)


class Server(ForkServer):
    """A fork server that ends with this process. closed: by its last user;  failures: to fork.

    A thread of its own starts it: signals of a terminal are blocked there, and the kernel kills what a thread has started when
    the thread ends (``machine.end_with_parent``). Raises OSError.
    """

    def __init__(self, modules: Sequence[str], variables: Mapping[str, str]) -> None:
        super().__init__()
        self.set_forkserver_preload(list(modules))
        # before Python 3.13 the server does not get the path of modules
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.variables = {**variables, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        self.closed, self.failures = False, 0
        self._thread = ThreadPoolExecutor(1, "daskreg-fork-server")
        try:
            self.ensure_running()
        except BaseException:
            self._thread.shutdown()
            raise

    def ensure_running(self) -> None:
        """Start it, or again if it has ended. Raises OSError."""
        if self.closed:
            raise OSError("the fork server is closed")
        self._thread.submit(self._run).result()

    def _run(self) -> None:
        start: Callable[[], None] = super().ensure_running
        resource_tracker.ensure_running()  # which lets signals through in the end
        signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        with _environment(self.variables):
            start()

    def close(self) -> None:
        """End it, and what it has forked."""
        self.closed = True
        pid = vars(self)["_forkserver_pid"]
        with suppress(OSError):  # it has ended
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(vars(self)["_forkserver_alive_fd"])
        self._thread.shutdown()


class Popen(popen_forkserver.Popen):
    """A process forked by a server; its environment is that of this process."""

    def __init__(self, process: Any, server: Server) -> None:
        self.server, self._ended = server, threading.Lock()
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        """As Python's, which knows one server only."""
        data = _message(self, process, Preparation)
        self.sentinel, pipe = self.server.connect_to_new_process(vars(self)["_fds"])
        kept = os.dup(pipe)  # closed when this process ends, which the new one sees
        self.finalizer = util.Finalize(self, _close, (kept, self.sentinel))
        with open(pipe, "wb") as file:
            file.write(data)
        self.pid = read_signed(self.sentinel)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, None while it runs; Python's own reads it once for each thread that asks."""
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            with self._ended:
                if self.returncode is None:
                    found: int | None = super().poll(flag)
                    return found
        return self.returncode


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


class FreshPopen(popen_spawn_posix.Popen):
    """A process that is started afresh, and does not import the script either."""

    def _launch(self, process: Any) -> None:
        """As Python's, but for the message."""
        tracker, files = resource_tracker.getfd(), vars(self)["_fds"]
        files.append(tracker)
        data = _message(self, process, dict)
        (theirs, pipe), (self.sentinel, kept) = os.pipe(), os.pipe()
        self.finalizer = util.Finalize(self, _close, (self.sentinel, pipe))
        try:
            files.extend([theirs, kept])
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=theirs)
            self.pid = util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, files)
        finally:
            _close(theirs, kept)
        with open(pipe, "wb", closefd=False) as file:
            file.write(data)


def _message(popen: Any, process: Any, kind: type[dict[str, Any]]) -> bytes:
    """The first message to a new process. It does not import the script, of which it gets what it needs by value."""
    data = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        prepared = spawn.get_preparation_data(process.name)
        dump(kind({name: value for name, value in prepared.items() if not name.startswith("init_main_from")}), data)
        dump(process, data)
    finally:
        context.set_spawning_popen(None)
    return data.getvalue()


class Preparation(dict[str, Any]):
    """The first message to a new process, which takes over the environment too, and ends with the server."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _prepared, (os.getpid(), dict(os.environ), dict(self))


def _prepared(parent: int, environment: dict[str, str], data: dict[str, Any]) -> dict[str, Any]:
    machine.end_with_parent()
    if psutil.Process(os.getppid()).ppid() != parent:  # the server has ended before
        os._exit(1)
    os.environ.clear()
    os.environ.update(environment)
    return data


class ForkedProcess(context.ForkServerProcess):
    """A process forked by the server of this process; started afresh where there is none, or it fails."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        server = _server
        if server is not None and server.failures < MOST_FAILURES:
            try:
                return Popen(process_obj, server)
            except (OSError, EOFError) as problem:
                if server.closed:
                    raise
                server.failures += 1
                log.info("a process is started afresh (%r).", problem)
        return FreshPopen(process_obj)


class FreshProcess(context.SpawnProcess):
    """A process that is started afresh."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return FreshPopen(process_obj)


class ForkedContext(context.ForkServerContext):
    """What ``multiprocessing.get_context(METHOD)`` returns."""

    _name = METHOD
    Process = ForkedProcess


class FreshContext(context.SpawnContext):
    """What ``multiprocessing.get_context(FRESH_METHOD)`` returns."""

    _name = FRESH_METHOD
    Process = FreshProcess


vars(context)["_concrete_contexts"].update({METHOD: ForkedContext(), FRESH_METHOD: FreshContext()})


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

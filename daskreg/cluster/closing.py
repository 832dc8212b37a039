"""Close clients and clusters within a deadline: a worker that was lost, or is busy, does not keep a command from ending."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from distributed import Client, Worker
from distributed.core import Status

from daskreg import machine
from daskreg.cluster import timeouts

log = logging.getLogger("daskreg")


def worker_processes() -> set[BaseProcess]:
    """Of all clusters that this process has started."""
    return {process for process in multiprocessing.active_children() if machine.WORKER_PROCESS in process.name}


def kill(processes: Iterable[BaseProcess]) -> None:
    """Kill processes that this one has started; those that have ended are left alone."""
    for process in processes:
        with suppress(ValueError, OSError):  # closed, or ended in the meantime
            process.kill()


def end_soon(worker: Worker) -> None:
    """Of a worker whose nanny waits for the end of its process: have that end without a last collection of garbage.

    Python's takes a second of a core where kernels have run, on a busy machine several, and after four of them the nanny kills
    the process, with a warning. What is registered for the exit is called as ever.
    """
    if worker.nanny:
        machine.leave_garbage()


def close_client(client: Client) -> None:
    """Close a client; one that cannot reach its scheduler any more is left after ``CLOSE_TIMEOUT``."""
    with suppress(TimeoutError, AssertionError):  # the latter by Dask, where it closes itself at the same time
        client.close(timeout=timeouts.CLOSE_TIMEOUT)


def close_cluster(cluster: Any) -> None:
    """Close a cluster that daskreg has started; its worker processes are killed after ``CLOSE_TIMEOUT``."""
    pids = {getattr(worker, "pid", None): _starting(worker) for worker in cluster.workers.values()}
    own = {process for process in worker_processes() if process.pid in pids}
    kill(process for process in own if pids[process.pid])  # in place of a lost one; Dask would wait until it has started
    closing = threading.Thread(target=_close, args=(cluster,), name="daskreg-close", daemon=True)
    closing.start()
    closing.join(timeouts.CLOSE_TIMEOUT)
    if not closing.is_alive():
        return
    alive = [process for process in own if process.is_alive()]
    if alive:
        log.warning("%d workers did not end within %.0f s and were killed", len(alive), timeouts.CLOSE_TIMEOUT)
    kill(own)
    closing.join(timeouts.KILL_TIMEOUT)
    if closing.is_alive():
        cluster.status = Status.closed  # else Dask waits for it again when Python exits


def _starting(worker: Any) -> bool:
    """Whether a nanny waits for its worker process to start."""
    process = getattr(worker, "process", None)
    return process is not None and process.status == Status.starting


def _close(cluster: Any) -> None:
    with suppress(Exception):  # nothing that is discarded is of interest
        cluster.close()

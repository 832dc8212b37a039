"""Find the Dask client to use, or start an embedded cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import dask
import distributed
from distributed import Client, LocalCluster

from daskreg import machine
from daskreg.cluster import preload, timeouts
from daskreg.cluster.closing import close_client, close_cluster
from daskreg.cluster.gpu_driver import usable_when_forked
from daskreg.cluster.isolation import (
    LOOPBACK,
    LoopbackWorker,
    closed,
    private_configuration,
    safe_path,
    secret_prefix,
    temporary_security,
)
from daskreg.cluster.job_workers import BATCH_SYSTEMS, job_client
from daskreg.cluster.logs import silenced, worker_log
from daskreg.cluster.processes import started
from daskreg.errors import InputError, closest, counted
from daskreg.fork_server import FRESH_METHOD, METHOD, fork_server
from daskreg.kernels.device import Kind, gpus

log = logging.getLogger("daskreg")
_embedded: WeakKeyDictionary[Client, str] = WeakKeyDictionary()  # with the address of its dashboard


@contextmanager
def existing_client(
    client: Client | str | None = None, address: str | None = None, workers: int | None = None
) -> Iterator[Client | None]:
    """The client given (or its address), the one at an address, of jobs at the name of a batch system, the current one, or None.

    Only a client made here is silenced, and closed in the end, with its jobs.  workers: jobs of one worker each.
    Raises InputError when no scheduler answers at ``address``, and for what is no client, and what ``job_client`` raises.
    """
    if isinstance(client, str):
        client, address = None, address or client
    if client is not None and not isinstance(client, Client):
        raise InputError(
            f"client is a {type(client).__name__}; a dask.distributed.Client, or a scheduler's address, was expected."
        )
    found = client or (None if address else current_client())
    if found is not None or not address:
        yield found
    elif address in BATCH_SYSTEMS:
        with silenced(), job_client(address, workers or 1) as (started_here, page):
            _embedded[started_here] = page
            log.info("dashboard: %s", page)
            yield started_here
    else:
        with silenced():
            connected = _connect(address)
            try:
                yield connected
            finally:
                close_client(connected)


@contextmanager
def embedded_client(workers: int = 1, threads: int | None = None, device: Kind = "cpu") -> Iterator[Client]:
    """The client of a cluster on this machine that is started here and closed in the end.

    One worker runs in this process, uses all cores and shares the compiled kernels; several are processes that share the cores,
    or have a GPU each. Nobody else can reach them, see ``isolation``.
    """
    prefix = secret_prefix()
    make = partial(_start, workers, threads, device, prefix)
    with (
        silenced(),
        private_configuration(),
        safe_path(),
        worker_log() if workers > 1 else nullcontext(),
        _started_by(device) if workers > 1 else nullcontext(),
        started(make) if workers > 1 else _in_this_process(make) as cluster,
    ):
        client = Client(cluster, timeout=timeouts.SCHEDULER_TIMEOUT, set_as_default=False)
        _embedded[client] = f"http://127.0.0.1:{cluster.scheduler.http_server.port}{prefix}/status"
        log.info("dashboard: %s", _embedded[client])
        try:
            yield client
        finally:
            close_client(client)


@contextmanager
def _started_by(device: Kind) -> Iterator[None]:
    """Worker processes are forked by one that has imported what they need, where they can use their GPUs then, else started
    afresh.
    """
    with fork_server(device) as there:
        method = METHOD if there and (device == "cpu" or usable_when_forked()) else FRESH_METHOD
        with dask.config.set({"distributed.worker.multiprocessing-method": method}):
            yield


@contextmanager
def _in_this_process(make: Callable[[], Any]) -> Iterator[Any]:
    cluster = make()
    try:
        yield cluster
    finally:
        close_cluster(cluster)


def dashboard(client: Client) -> str:
    """The address of the dashboard of a client's cluster; empty where it has none."""
    return _embedded.get(client) or str(client.dashboard_link or "")


def is_embedded(client: Client) -> bool:
    """Whether a client is that of a cluster that daskreg has started."""
    return client in _embedded


def _start(workers: int, threads: int | None, device: Kind, prefix: str = "/") -> Any:
    common: dict[str, Any] = {
        "n_workers": workers,
        "dashboard_address": LOOPBACK,
        "scheduler_kwargs": {"http_prefix": prefix},
        "silence_logs": logging.CRITICAL,
    }
    if device == "cuda" and workers > 1:
        return _gpu_cluster(workers, common)
    return _processes(workers, threads, common) if workers > 1 else _thread(threads, common)


def current_client() -> Client | None:
    """Dask's current client, None without one."""
    try:
        return distributed.get_client()
    except ValueError:
        return None


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=timeouts.SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        near = None if ":" in address else closest(address, [*BATCH_SYSTEMS, "local", "cuda"])
        mend = f"did you mean {near}?" if near else "start one, or leave --cluster out."
        raise InputError(f"no Dask scheduler answers at {address}: {error}; {mend}") from None


def _thread(threads: int | None, common: dict[str, Any]) -> Any:
    """A worker in this process: messages stay in memory, and no port but that of HTTP is open."""
    cores = {"cores": threads or machine.cores().value}
    return closed(LocalCluster)(
        threads_per_worker=1, processes=False, worker_class=LoopbackWorker, memory_limit=0, resources=cores, **common
    )


def _processes(workers: int, threads: int | None, common: dict[str, Any]) -> Any:
    cores = {"cores": max(1, (threads or machine.cores().value) // workers)}
    return closed(LocalCluster)(
        threads_per_worker=1,
        preload=preload.MODULE,
        memory_limit=0,
        resources=cores,
        security=temporary_security(),
        **common,
    )


def _gpu_cluster(workers: int, common: dict[str, Any]) -> Any:
    """A worker process for each GPU. Raises InputError where there are fewer."""
    if workers > gpus():
        raise InputError(
            f"{counted(workers, 'worker')} were asked for and there are {counted(gpus(), 'GPU')}; one worker needs one, so use "
            f"--workers {gpus()}."
        )
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise InputError("several GPUs need dask-cuda; pip install 'daskreg[cuda13]' (or cuda12), or use --workers 1.") from None
    # Dask's own connections use TLS over TCP: it only hands out the work; ranks communicate over UCX
    return closed(LocalCUDACluster)(preload=[preload.MODULE], security=temporary_security(), **common)

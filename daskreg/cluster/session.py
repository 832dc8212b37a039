"""Where the work runs: the client in hand, one at an address, or a small cluster of our own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import distributed
from distributed import Client, LocalCluster

from daskreg import machine
from daskreg.cluster import leave
from daskreg.errors import InputError, RunError
from daskreg.kernels.device import Kind, gpu_memory, gpu_place, gpus
from daskreg.machine import Limit

log = logging.getLogger("daskreg")


@contextmanager
def existing(client: Client | None = None, address: str | None = None) -> Iterator[Client | None]:
    """The client in hand, the one at an address, the current one, or None; what was there before is left open.

    Raises InputError when nobody answers at ``address``.
    """
    found = client or (None if address else _current())
    if found is not None or not address:
        yield found
    else:
        with _reach(address) as there:
            yield there


@contextmanager
def embedded(workers: int = 1, threads: int | None = None, device: Kind = "cpu") -> Iterator[Client]:
    """A small cluster of our own, closed in the end.

    One worker lives in this process, uses all cores and shares the compiled kernels; several are processes that share the
    cores, or have a GPU each.
    """
    with (
        _gpu_cluster(workers) if device == "cuda" and workers > 1 else _cluster(workers, threads) as cluster,
        Client(cluster, set_as_default=False) as own,
    ):
        log.info("dashboard: http://127.0.0.1:%s/status", own.dashboard_link.rpartition(":")[2].partition("/")[0])
        yield own


def workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler knows now of each worker, by address. Raises RunError when it does not answer.

    Not what ``client.scheduler_info`` returns: the client's own refresh, which leaves the workers out, may come in between.
    """
    scheduler: Any = client.scheduler
    try:
        return dict(client.sync(scheduler.identity, n_workers=-1)["workers"])
    except (OSError, RuntimeError) as error:  # RuntimeError: the client has given it up and closed
        raise RunError(f"the Dask scheduler does not answer: {error}; look at its log, then use --resume.") from error


def worker_count(client: Client) -> int:
    """How many workers a cluster has now. Raises InputError when none comes within a minute."""
    if not workers_of(client):
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError:
            raise InputError("the Dask cluster has no worker; start at least one.") from None
    return len(workers_of(client))


def memory_limit(client: Client | None, workers: int) -> Limit:
    """Bytes the smallest worker may use: its own limit in Dask, or its share of what its machine, container or job has."""
    if client is None:
        return _share(machine.memory(), workers)
    known, found = workers_of(client), client.run(machine.memory)
    groups = Counter((known[a]["host"], found[a].source) for a in found if a in known)
    limits = [_memory_of(known[a], found[a], groups[known[a]["host"], found[a].source]) for a in found if a in known]
    return min(limits, key=lambda limit: limit.value, default=_share(machine.memory(), workers))


def _memory_of(worker: dict[str, Any], limit: Limit, sharing: int) -> Limit:
    """What one worker may use of a limit that so many share."""
    own = int(worker.get("memory_limit") or 0)
    if not own:
        return _share(limit, sharing)
    return Limit(own, f"the memory limit of the Dask worker {worker.get('name')}") if own <= limit.value else limit


def _share(limit: Limit, sharing: int) -> Limit:
    if sharing == 1:
        return limit
    return Limit(limit.value // sharing, f"1/{sharing} of {limit.source}, {limit.value / 2**30:.1f} GiB")


def device_of(client: Client | None, wanted: str, workers: int = 1) -> Kind:
    """Where kernels run: what is wanted, or with ``auto`` on GPUs where every worker has one.

    Without a client: where this machine has one for each of ``workers``.
    Raises InputError where a GPU is wanted and a worker has none.
    """
    if wanted == "cpu":
        return "cpu"
    found = {"this machine": gpus() // (workers if wanted == "auto" else 1)} if client is None else client.run(gpus)
    lacking = [name for name, n in found.items() if not n]
    if wanted == "cuda" and lacking:
        raise InputError(
            f"a GPU was asked for and {lacking[0]} has none that CuPy can use; install daskreg[cuda13] (or cuda12) there and "
            "look at nvidia-smi, or use --device cpu."
        )
    return "cpu" if wanted == "auto" and (lacking or not found) else "cuda"


def gpu_workers() -> int:
    """Workers of a cluster with one for each GPU of this machine."""
    return max(1, gpus())


def gpu_limit(client: Client | None) -> Limit:
    """Free bytes of the fullest GPU among the workers', a worker's share where several have the same."""
    if client is None:
        return Limit(gpu_memory(), "free on the GPU")
    places, free = client.run(gpu_place), client.run(gpu_memory)
    least = min(int(free[a]) // list(places.values()).count(place) for a, place in places.items())
    return Limit(least, "free on the fullest GPU")


def _gpu_cluster(workers: int) -> Any:
    """A worker process for each GPU. Raises InputError where there are fewer."""
    if workers > gpus():
        raise InputError(
            f"{workers} workers were asked for and there are {gpus()} GPUs; one worker needs one, so use --workers {gpus()}."
        )
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise InputError("several GPUs need dask-cuda; pip install 'daskreg[cuda13]' (or cuda12), or use --workers 1.") from None
    # Dask itself stays on TCP: it only says what is to be done; ranks talk over UCX
    return LocalCUDACluster(n_workers=workers, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)


def _current() -> Client | None:
    try:
        return distributed.get_client()
    except ValueError:
        return None


def _reach(address: str) -> Client:
    try:
        return Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address}: {error}; start one, or leave --cluster out.") from None


def _cluster(workers: int, threads: int | None) -> LocalCluster:
    logging.getLogger("distributed").setLevel(
        logging.CRITICAL
    )  # of a cluster nobody asked for, only failures matter: ours are raised
    cores = threads or machine.cores().value
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=workers > 1,
        **({"preload": leave.NAME} if workers > 1 else {}),
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        resources={"cores": max(1, cores // workers)},
        silence_logs=logging.CRITICAL,
    )

"""Where the work runs: the client in hand, one at an address, or a small cluster of our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import distributed
from distributed import Client, LocalCluster

from daskreg.errors import InputError

log = logging.getLogger("daskreg")


@contextmanager
def session(client: Client | None = None, address: str | None = None, threads: int | None = None) -> Iterator[Client]:
    """A client to work with; what was there before is left open, what was started here is closed.

    An embedded cluster is one worker in this process: one rank that uses all cores and shares the compiled kernels.
    Raises InputError when nobody answers at ``address``.
    """
    found = client or (None if address else _current())
    if found is not None:
        yield found
    elif address:
        with _reach(address) as there:
            yield there
    else:
        with _embedded(threads) as cluster, Client(cluster, set_as_default=False) as own:
            log.info("dashboard: http://127.0.0.1:%s/status", own.dashboard_link.rpartition(":")[2].partition("/")[0])
            yield own


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


def _embedded(threads: int | None) -> LocalCluster:
    logging.getLogger("distributed").setLevel(
        logging.CRITICAL
    )  # of a cluster nobody asked for, only failures matter: ours are raised
    cores = threads or len(os.sched_getaffinity(0))
    return LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        resources={"cores": cores},
        silence_logs=logging.CRITICAL,
    )

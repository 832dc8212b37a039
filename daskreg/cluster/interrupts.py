"""An interrupt in a notebook goes to all processes of the kernel's group: workers there do not end with it while a run saves."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distributed import Client

from daskreg.cluster import timeouts
from daskreg.cluster.worker_calls import call_each, not_lost

_before: list[Any] = []  # handler of SIGINT in this worker process, while interrupts are ignored


@contextmanager
def shielded(client: Client, workers: Sequence[str]) -> Iterator[None]:
    """Workers that are other processes of this process's group ignore interrupts meanwhile: a cluster made in the notebook."""
    here = socket.gethostname(), os.getpgid(0), os.getpid()
    call_each(client, workers, _ignore, here, seconds=timeouts.RESPONSE_TIMEOUT)
    try:
        yield
    finally:
        call_each(client, not_lost(client, workers), _restore, seconds=timeouts.RESPONSE_TIMEOUT)


def _ignore(client: tuple[str, int, int]) -> None:
    """client: host, process group and process of the one that waits for the run."""
    host, group, process = client
    if (socket.gethostname(), os.getpgid(0)) == (host, group) and os.getpid() != process and not _before:
        _before.append(signal.signal(signal.SIGINT, signal.SIG_IGN))


def _restore() -> None:
    if _before:
        signal.signal(signal.SIGINT, _before.pop())

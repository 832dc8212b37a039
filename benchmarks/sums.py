"""The time of a sum over the ranks of one machine: through shared memory, and by messages over UCX and TCP.

    python benchmarks/sums.py                       # two worker processes
    python benchmarks/sums.py --workers 2,3,4       # at most as many as there are cores

Each rank contributes six float64, as in every iteration on GPUs. ``us``: microseconds per sum, the mean of 1000 in a row, of
the slowest rank, while all ranks are in a busy wait, as on GPUs. Prints one JSON line per row and writes ``sums.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from scaling import CORES, _close, _connect, _open, cluster, versions

from daskreg.cluster.worker_calls import workers_of
from daskreg.comm import Communicator, available_transports, use_shared_memory

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "sums.json"
REPEATS = 1000


def sums(comm: Communicator, over: str) -> float:
    """Seconds of one."""
    if over == "memory":
        use_shared_memory(comm, ["here"] * comm.size)
        assert comm.shared_gather is not None, "no shared memory"
    comm.busy_wait, mine = True, np.arange(6.0)
    for _ in range(REPEATS // 10):
        comm.gather(mine)
    start = time.perf_counter()
    for _ in range(REPEATS):
        comm.gather(mine)
    return (time.perf_counter() - start) / REPEATS


async def _sums(over: str, dask_worker: Any) -> float:
    return await asyncio.to_thread(sums, dask_worker.benchmark.communicator, over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="2")
    given, rows = parser.parse_args(), list[dict[str, Any]]()
    for workers in map(int, given.workers.split(",")):
        with cluster(workers) as client:
            members = sorted(workers_of(client))
            for over, kind in itertools.chain([("memory", available_transports()[0])], ((k, k) for k in available_transports())):
                found = client.run(_open, kind, f"sums-{time.time_ns()}", members, workers=members)
                client.run(_connect, [found[a] for a in members], workers=members)
                took = max(client.run(_sums, over, workers=members).values())
                client.run(_close, workers=members)
                row = {"case": f"sum, {over}", "workers": workers, "us": round(took * 1e6, 1)}
                measure.emit({**row, "cores": CORES, "versions": versions()}, rows)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

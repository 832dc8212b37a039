"""What a message between two ranks takes, on a cluster as daskreg starts it: latency and rate, over UCX or TCP.

    python benchmarks/gpu_link.py --comm ucx                  # arrays on two GPUs
    python benchmarks/gpu_link.py --comm tcp --device cpu     # arrays in the memory of two processes

Both ranks send and receive at once, as they exchange planes; over TCP arrays of a GPU pass through the host, as in a run.
``ms``: median of a message each way;  ``GB/s``: bytes one way over that time. Prints one JSON line per size, and writes
``gpu_link.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.cluster import embedded_client
from daskreg.cluster.bring_up import form_group, release, start_actors
from daskreg.cluster.worker_calls import workers_of

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_link.json"
SIZES = [1 << n for n in (12, 16, 20, 22, 24, 26)]  # bytes
REPEATS = 12


def measured(run: str, device: str, sizes: list[int]) -> list[dict[str, Any]]:
    """On the worker of each rank, as a task."""
    from daskreg.cluster import rank_actor
    from daskreg.kernels.device import Device, host

    there = Device(device)  # type: ignore[arg-type]  # a choice of the command line
    there.use()
    comm = rank_actor._actors[run].communicator
    comm.busy_wait = device == "cuda"
    peer, rows = 1 - comm.rank, []
    for size in sizes:
        mine, its, seconds = there.put(np.ones(size, np.uint8)), there.put(np.zeros(size, np.uint8)), []
        direct = comm.device_arrays or device == "cpu"
        for _ in range(REPEATS):
            comm.barrier()
            start = time.perf_counter()
            sent, received = (mine, its) if direct else (host(mine), np.empty(size, np.uint8))
            comm.exchange([(peer, [sent])], [(peer, [received])], "other")
            if not direct:
                its[...] = there.put(received)
            if device == "cuda":
                there.xp.cuda.Device().synchronize()
            seconds.append(time.perf_counter() - start)
        if int(its[-1]) != 1:
            raise ValueError("the message did not arrive")
        ms = float(np.median(seconds[2:])) * 1e3
        rows.append({"bytes": size, "ms": round(ms, 3), "GB/s": round(size / ms / 1e6, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comm", default="ucx", choices=["ucx", "tcp"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    given = parser.parse_args()
    with embedded_client(2, None, given.device) as client:
        client.wait_for_workers(2, timeout=120)
        group = form_group(client, sorted(workers_of(client))[:2], given.comm, 60.0)
        start_actors(client, group)
        futures = [client.submit(measured, group.run, given.device, SIZES, workers=[a], pure=False) for a in group.addresses]
        rows = [{"comm": given.comm, "device": given.device, **row} for row in client.gather(futures)[0]]
        release(client, group)
    for row in rows:
        print(json.dumps(row), flush=True)
    known = json.loads(OUT.read_text()) if OUT.exists() else []
    kept = [row for row in known if (row["comm"], row["device"]) != (given.comm, given.device)]
    OUT.write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

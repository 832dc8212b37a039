"""Weak and strong scaling over the GPUs of one machine, through dask-cuda: the time of an iteration, and equal bits.

    python benchmarks/gpu_scaling.py --gpus 1,2,4 --weak 512,700 --strong 1024        # needs as many GPUs
    python benchmarks/gpu_scaling.py --gpus 1,2 --weak 48 --strong 64 --device cpu    # worker processes instead, as a check

Weak: one cube of that edge per GPU, stacked; strong: one cube in total. The textures are those of gigavoxel.py, at the same
voxel size, one deformed by its known map; deformable stage at full resolution. ``ms``: one iteration, from levels of two
lengths, each the faster of two, which excludes the fixed cost of a level and a pause of the host;  ``efficiency``: relative
to the first number of GPUs, and to the ratio of GPUs where the volume is the same;  ``gpu_bytes``: the peak of any GPU;
``predicted``: the measurement of gpu_rank.py for that block, where there is one;  ``digest``: of the bytes of the
displacement. Prints one JSON line per row and writes ``gpu_scaling.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).parents[1]))

from gigavoxel import FINE, Truth, volume
from gpu_rank import LOSSES
from measure import commit, machine

import daskreg
from daskreg.config import Config, Deformable
from daskreg.grid import Grid
from daskreg.kernels.device import Device
from daskreg.storage import write_image

RESULTS = Path(__file__).parent / "results"
REPEATS = 2  # of a level
OUT = Path(os.environ.get("OUT", RESULTS)) / "gpu_scaling.json"


@contextmanager
def cluster(workers: int, device: str) -> Iterator[Client]:
    """One worker for each of the GPUs, or as many processes."""
    if device == "cuda":
        from dask_cuda import LocalCUDACluster

        made = LocalCUDACluster(n_workers=workers, dashboard_address=None)
    else:
        made = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0)
    with made as there, Client(there, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=120)
        yield client


def device_name(kind: str) -> str:
    """Of the device of a worker."""
    return Device(kind).name if kind == "cuda" else machine()


def written(folder: str, shape: tuple[int, int, int], gpu: bool) -> tuple[str, str]:
    """Write both images as OME-Zarr."""
    truth, grid = Truth(np.array(shape) * FINE), Grid(shape, (FINE,) * 3, unit="millimeter")
    places = f"{folder}/fixed.ome.zarr", f"{folder}/moving.ome.zarr"
    with dask.config.set(scheduler="threads"):
        for place, moving in zip(places, (False, True), strict=True):
            write_image(place, volume(truth, grid, moving, gpu), grid)
    return places


def measured(images: tuple[str, str], client: Client, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per iteration, memory, and the digest of the result."""
    times = [int(n) for n in given.iterations.split(",")]
    stages = tuple(Deformable(similarity=LOSSES[name], scales=(1,), iterations=(n,), tolerance=0, storage=given.storage)
                   for n in (times[0], *times * REPEATS))  # the first one compiles  # fmt: skip
    found = daskreg.register(*images, Config(stages=stages), client=client, device=given.device,
                             residency=given.residency, comm=given.comm, checkpoint=None)  # fmt: skip
    seconds = [level["seconds"] for level in found.report["levels"]][1:]
    shorter, longer = (min(seconds[k::2]) for k in range(2))
    digest = hashlib.sha256()
    for planes in found.displacement.blocks.ravel():
        digest.update(np.ascontiguousarray(planes.compute()).tobytes())
    ranks = [m for m in found.report.get("ranks", [found.report["machine"]]) if m]
    return {
        "ms": round((longer - shorter) / (times[1] - times[0]) * 1e3, 3), "digest": digest.hexdigest()[:16],
        "gpu_bytes": max((m.get("gpu_peak_bytes", 0) for m in ranks), default=0),
    }  # fmt: skip


def predicted(block: tuple[int, ...], name: str, given: argparse.Namespace) -> float | None:
    """The measurement of gpu_rank.py for such a rank."""
    path = RESULTS / "gpu_rank.json"
    for row in json.loads(path.read_text()) if path.exists() else []:
        edges = [int(n) for n in row["block"].split("x")]
        same = tuple(edges * 3 if len(edges) == 1 else edges) == block, row["case"] == name, row["storage"] == given.storage
        if all(same) and row["residency"] == given.residency:
            return float(row["ms"])
    return None


def rows_of(shape_of: Any, case: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each loss and number of GPUs; ``shape_of``: the shape of the volume for that number."""
    numbers, first = [int(n) for n in given.gpus.split(",")], dict[str, float]()
    for gpus in numbers:
        shape = shape_of(gpus)
        with tempfile.TemporaryDirectory(dir=given.folder) as folder, cluster(gpus, given.device) as client:
            images = written(folder, shape, given.device == "cuda")
            origin = {"commit": commit(), "device": next(iter(client.run(device_name, given.device).values()))}
            for name in given.losses.split(","):
                row = origin | {"case": case, "gpus": gpus, "shape": shape, "loss": name, "storage": given.storage}
                row |= {"residency": given.residency, "comm": given.comm, **measured(images, client, name, given)}
                first.setdefault(name, row["ms"] * (1 if case.startswith("weak") else numbers[0]))
                ideal = first[name] if case.startswith("weak") else first[name] / gpus
                yield {**row, "efficiency": round(ideal / row["ms"], 3),
                       "predicted": predicted((shape[0] // gpus, *shape[1:]), name, given) if gpus > 2 else None}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", default="1,2,4")
    parser.add_argument("--weak", default="512,700", help="edges of a GPU's block")
    parser.add_argument("--strong", default="1024", help="edges of the whole volume")
    parser.add_argument("--losses", default="lncc center,mi")
    parser.add_argument("--residency", default="window")
    parser.add_argument("--comm", default="auto")
    parser.add_argument("--iterations", default="32,64")
    parser.add_argument("--storage", default="float32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", help="where the volumes go (a temporary place by default)")
    given, rows = parser.parse_args(), list[dict[str, Any]]()
    weak = [(f"weak, {e}^3 a GPU", lambda n, e=int(e): (e * n, e, e)) for e in given.weak.split(",") if e]
    strong = [(f"strong, {e}^3", lambda n, e=int(e): (e, e, e)) for e in given.strong.split(",") if e]
    for row in itertools.chain.from_iterable(rows_of(shape_of, case, given) for case, shape_of in weak + strong):
        rows.append(row)
        print(json.dumps(row), flush=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

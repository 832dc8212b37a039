"""Several worker processes on one GPU: the result has the bits of one process, and the time of an iteration.

    python benchmarks/gpu_processes.py 256                  # edge; needs a GPU, and the extra ucx for planes from GPU to GPU
    python benchmarks/gpu_processes.py 48 --device cpu      # the same on a CPU

Affine and deformable (LNCC) registration of two smooth noisy volumes a few voxels apart, on one worker in this process, then
on two and three Dask workers, with every residency. Processes share a GPU by time slices, so the times say nothing about
several GPUs. Prints one JSON line per run: seconds of each level of the deformable stage, and ``identical``: the displacement
has the bits of one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster
from scipy.ndimage import gaussian_filter, zoom

sys.path.insert(0, str(Path(__file__).parents[1]))

import daskreg
from daskreg.config import Affine, Config, Deformable
from daskreg.similarity import LNCC

CONFIG = Config(
    stages=(
        Affine(scales=(4,), iterations=(10,)),
        Deformable(similarity=LNCC(), scales=(2, 1), iterations=(40, 30), tolerance=0),
    )
)


def volumes(edge: int) -> tuple[Any, Any]:
    """Fixed and moving, in [0, 1]."""
    noise = np.random.default_rng(0).random((edge // 2,) * 3, dtype=np.float32)
    image = zoom(gaussian_filter(noise, 2), 2, order=1)
    image = (image - image.min()) / (image.max() - image.min())
    return image, np.roll(image, (1, -1, 2), axis=(0, 1, 2))


def run(images: tuple[Any, Any], device: str, client: Client | None = None, **given: Any) -> tuple[Any, list[Any]]:
    """The displacement, and scale and seconds of every deformable level."""
    found = daskreg.register(*images, CONFIG, client=client, device=device, **given)
    levels = [level for level in found.report["levels"] if level["stage"] == "deformable"]
    return np.asarray(found.displacement), [[level["scale"], round(level["seconds"], 3)] for level in levels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("edge", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--comm", default="auto", help="auto, tcp or ucx")
    given = parser.parse_args()
    images = volumes(given.edge)
    run(images, given.device)  # compiles
    alone, levels = run(images, given.device)
    print(json.dumps({"workers": 1, "levels": levels}), flush=True)
    for workers in (2, 3):
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            for residency in ("replicate", "replicate", "window", "ring"):  # the first compiles, or loads what is kept
                u, levels = run(images, given.device, client, residency=residency, comm=given.comm)
                same = bool(np.array_equal(u, alone))
                print(json.dumps({"workers": workers, "residency": residency, "levels": levels, "identical": same}), flush=True)


if __name__ == "__main__":
    main()

"""Time and memory of an iteration of the deformable stage on one GPU, and the time of a whole schedule.

    python benchmarks/gpu_iterations.py 256 512                 # edges; needs a GPU with CuPy and numba-cuda
    python benchmarks/gpu_iterations.py 512 --losses mse,mi --storages mixed
    python benchmarks/gpu_iterations.py 256 512 --fireants      # FireANTs from PyPI (plain PyTorch) in the same process

Two smooth noisy volumes a few voxels apart, windows of 7. ``storage``: of images and fields, float32 or mixed. ``ms``: one
iteration at full resolution, the wall time of a level of 64 iterations minus that of one of 32, which excludes the fixed cost
of a level. ``bytes_per_voxel``: the peak of CuPy's pool. ``schedule``: seconds of a run at scales 4, 2, 1 with 200, 100, 50
iterations, without early stops, from images on the device to a displacement there, with compiled kernels. ``fireants_ms``:
one iteration of its GreedyRegistration in float32, with the same filters, Adam and window, timed in the same way. Prints one
JSON line per case and writes ``gpu_iterations.json``, whose rows also have what ``gpu_conditions.py`` finds.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu_conditions import conditions
from gpu_rank import Peak

from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine.images import Image
from daskreg.engine.memory import trim
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE, NGF

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_iterations.json"
LOSSES: dict[str, Any] = {
    "mse": MSE(),
    "lncc center": LNCC(radius=3, gradient="center"),
    "lncc exact": LNCC(radius=3),
    "mi": MI(),
    "ngf": NGF(),
}
FIREANTS = {  # fused extension, its better path, H200, milliseconds: measured elsewhere, not in this run
    (256, "mse"): 30.6, (256, "lncc center"): 36.5, (256, "mi"): 81.0,
    (512, "mse"): 237, (512, "lncc center"): 114, (512, "mi"): 459,
}  # fmt: skip


def volumes(edge: int) -> tuple[Any, Any]:
    """Fixed and moving, in [0, 1], in host memory: each run copies them to the device, and may round them."""
    import cupy
    from cupyx.scipy.ndimage import gaussian_filter, shift

    noise = cupy.random.RandomState(0).random_sample((edge,) * 3, dtype=cupy.float32)
    image = gaussian_filter(noise, 2.5)
    image -= image.min()
    image /= image.max()
    made = image.get(), shift(image, (1.3, -0.8, 2.1), order=1, mode="nearest").get()
    del image, noise
    trim()
    return made


def run(images: tuple[Any, Any], stage: Deformable, watch: Watch | None = None) -> float:
    """Seconds of the stage."""
    import cupy

    grid = Grid(images[0].shape)
    plan = make_plan(grid, grid, Config(stages=(stage,), percentiles=(0, 100)))
    fixed, moving = (Image.whole(cupy.asarray(image), grid) for image in images)
    rank = Rank(plan, (fixed, moving), np.eye(4), SingleRank(), watch or Watch())
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    found = rank.run()
    cupy.cuda.Device().synchronize()
    took = time.perf_counter() - start
    losses = found.levels[-1].losses
    assert losses[-1] < losses[0], losses[:: max(1, len(losses) // 8)]
    return took


def case(edge: int, name: str, images: tuple[Any, Any], storage: Any) -> dict[str, Any]:
    def level(iterations: int) -> Deformable:
        return Deformable(similarity=LOSSES[name], scales=(1,), iterations=(iterations,), tolerance=0, storage=storage)

    run(images, level(6))
    gc.collect()
    trim()
    peak = Peak()
    run(images, level(6), peak)
    short, long = (min(run(images, level(n)) for _ in range(2)) for n in (32, 64))
    row = {"case": name, "storage": storage, "edge": edge, "ms": round((long - short) / 32 * 1e3, 3)}
    row["bytes_per_voxel"] = round(peak.held / edge**3, 1)
    if (edge, name) in FIREANTS and storage == "float32":
        row["fireants_ms_elsewhere"] = FIREANTS[edge, name]
    return row


def schedule(edge: int, name: str, images: tuple[Any, Any], storage: Any) -> dict[str, Any]:
    stage = Deformable(similarity=LOSSES[name], scales=(4, 2, 1), iterations=(200, 100, 50), tolerance=0, storage=storage)
    run(images, stage)
    seconds = min(run(images, stage) for _ in range(2))
    return {"case": f"schedule, {name}", "storage": storage, "edge": edge, "seconds": round(seconds, 3)}


def fireants(edge: int, name: str, images: tuple[Any, Any]) -> dict[str, Any]:
    """Milliseconds per iteration of FireANTs and the peak memory of PyTorch, or its error message."""
    import torch

    kind = {"mse": "mse", "lncc exact": "cc", "mi": "mi"}.get(name)
    if kind is None:  # its centre gradient is in the extension only
        return {}
    try:
        seconds = [_fireants_level(kind, images, n) for n in (2, 3, 9)][1:]
    except torch.OutOfMemoryError:
        return {"fireants_ms": "out of memory"}
    held = torch.cuda.max_memory_reserved() / edge**3
    return {"fireants_ms": round((seconds[1] - seconds[0]) / 6 * 1e3, 1), "fireants_bytes_per_voxel": round(held, 1)}


def _fireants_level(kind: str, images: tuple[Any, Any], iterations: int) -> float:
    """Seconds of a level at full resolution."""
    import SimpleITK as sitk
    import torch
    from fireants.io import BatchedImages
    from fireants.io import Image as TheirImage
    from fireants.registration.greedy import GreedyRegistration

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    fixed, moving = (BatchedImages([TheirImage(sitk.GetImageFromArray(i), device="cuda")]) for i in images)
    made = GreedyRegistration(
        [1], [iterations], fixed, moving, loss_type=kind, cc_kernel_size=7, optimizer="Adam", optimizer_lr=0.5,
        smooth_grad_sigma=1.0, smooth_warp_sigma=0.5, progress_bar=False, max_tolerance_iters=10**6, tolerance=0,
    )  # fmt: skip
    torch.cuda.synchronize()
    start = time.perf_counter()
    made.optimize()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("edges", nargs="*", type=int, default=[256])
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--storages", default="float32,mixed")
    parser.add_argument("--fireants", action="store_true", help="FireANTs, which must be installed, in the same process")
    given = parser.parse_args()
    origin, rows = conditions(), list[dict[str, Any]]()

    def say(row: dict[str, Any]) -> None:
        """Print a row, and keep it even if a later one fails."""
        rows.append({**row, **origin})
        print(json.dumps(row), flush=True)
        OUT.write_text(json.dumps(rows, indent=1) + "\n")

    for edge in given.edges:
        images = volumes(edge)
        for name, storage in itertools.product(given.losses.split(","), given.storages.split(",")):
            row = case(edge, name, images, storage)
            if given.fireants and storage == "float32":
                trim()
                row.update(fireants(edge, name, images))
            say(row)
            if edge <= 256:
                say(schedule(edge, name, images, storage))


if __name__ == "__main__":
    main()

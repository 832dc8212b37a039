"""The peak of a run, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daskreg import Grid
from daskreg.storage import write_image

ROOT = Path(__file__).parents[2]
SHAPE = (128, 160, 128)
PROGRAM = """
import json
import sys

from daskreg import LNCC, MSE, Deformable, machine, plan, register

stages = [Deformable(similarity={"mse": MSE(), "lncc": LNCC()}[sys.argv[1]], scales=(2, 1), iterations=(2, 2))]
planned = plan("fixed.zarr", "moving.zarr", stages)
result = register("fixed.zarr", "moving.zarr", stages, output="run.zarr", threads=2)
found = {"peak": machine.peak_bytes(), "planned": planned.peak_bytes, "voxels": planned.fixed.size}
print(json.dumps({**found, "start": result.report["machine"]["start_bytes"]}))
"""


def measured(folder, shape, similarity):
    """Peak, planned peak, size at the rank's start and voxels of a run on noise, whose images no other process has in memory."""
    folder.mkdir()
    for seed, role in enumerate(("fixed", "moving")):
        write_image(folder / f"{role}.zarr", np.random.default_rng(seed).random(shape, np.float32), Grid(shape))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, similarity],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow  # in CI, a step of its own
@pytest.mark.parametrize("similarity", ["mse", "lncc"])
def test_the_peak_is_below_the_budget_and_the_plan(tmp_path, similarity):
    """72 bytes a voxel, both images included; a fifth of the process's size at its start for kernels, threads, the allocator."""
    measured(tmp_path / "small", (16, 16, 16), similarity)  # fills the kernels' cache: the compiler alone takes 100 MB
    found = measured(tmp_path / "large", SHAPE, similarity)
    assert found["peak"] < 72 * found["voxels"] + found["start"] * 6 / 5
    assert found["peak"] < found["planned"]

"""The peak of each worker's process stays below its projection and the plan, and neither is much more than that.

Nothing here depends on the size of an interpreter and its libraries: projections start from the measured size of each process.
"""

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
SHAPE = (192, 176, 192)  # large enough that arrays count for more than the interpreter
PROGRAM = """
import json
import sys

from daskreg import LNCC, MI, MSE, Affine, Deformable, register

if __name__ == "__main__":
    kind, loss, workers, residency = sys.argv[1:]
    similarity = {"mse": MSE(), "lncc": LNCC(), "mi": MI()}[loss]
    deformable = [Deformable(similarity=similarity, scales=(2, 1), iterations=(2, 2), tolerance=0)]
    stages = {"deformable": deformable, "affine": [Affine(similarity=similarity, scales=(2, 1), iterations=(1, 1))]}[kind]
    use = {"workers": int(workers), "residency": residency, "comm": "tcp"}
    result = register("fixed.zarr", "moving.zarr", stages, output="run.zarr", overwrite=True, **use)
    ranks = [{k: rank[k] for k in ("start_bytes", "peak_bytes", "projected_bytes")} for rank in result.report["ranks"]]
    print(json.dumps({"ranks": ranks, "planned": result.report["planned_bytes"]}))
"""
CASES = [
    ("deformable", "mse", 3, "replicate"),
    ("deformable", "mse", 1, "replicate"),
    ("deformable", "mi", 2, "window"),
    ("deformable", "lncc", 3, "ring"),
    ("affine", "mse", 1, "replicate"),
    ("affine", "mse", 3, "replicate"),
    ("affine", "lncc", 2, "ring"),
    ("affine", "mi", 3, "window"),
]


def measured(folder, shape, *arguments):
    """Memory of each worker's process, and what was planned; the program is a file, which processes that are spawned need."""
    folder.mkdir()
    for seed, role in enumerate(("fixed", "moving")):
        write_image(folder / f"{role}.zarr", np.random.default_rng(seed).random(shape, np.float32), Grid(shape))
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", *map(str, arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_measured_peaks_are_below_the_projection_and_near_it(tmp_path, arguments):
    measured(tmp_path / "small", (24, 24, 24), *arguments)  # fills the kernels' cache: the compiler alone takes 100 MB
    found = measured(tmp_path / "large", SHAPE, *arguments)
    assert len(found["ranks"]) == arguments[2]
    for rank in found["ranks"]:
        assert rank["start_bytes"] < rank["peak_bytes"] <= rank["projected_bytes"]
    peak = max(rank["peak_bytes"] for rank in found["ranks"])
    assert max(rank["projected_bytes"] for rank in found["ranks"]) <= 1.25 * peak
    assert peak <= found["planned"] <= 1.4 * peak

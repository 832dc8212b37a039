"""What workers take at their peak stays under what the plan says, and the plan is not much more than that."""

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

from daskreg import MI, Affine, Deformable, register

if __name__ == "__main__":
    deformable = [Deformable(similarity=MI(), scales=(2, 1), iterations=(2, 2), tolerance=0)]
    stages = {"deformable": deformable, "affine": [Affine(scales=(2, 1), iterations=(1, 1))]}[sys.argv[1]]
    result = register("fixed.zarr", "moving.zarr", stages, output="run.zarr", workers=2, comm="tcp", overwrite=True)
    peaks = [rank["peak_bytes"] for rank in result.report["ranks"]]
    print(json.dumps({"peaks": peaks, "projected": result.report["projected_bytes"]}))
"""


def measured(folder, shape, kind):
    """Peaks of two workers and their projection; the program is a file, which processes that are spawned need."""
    folder.mkdir()
    for seed, role in enumerate(("fixed", "moving")):
        write_image(folder / f"{role}.zarr", np.random.default_rng(seed).random(shape, np.float32), Grid(shape))
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", kind],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["deformable", pytest.param("affine", marks=pytest.mark.slow)])
def test_two_workers_stay_under_the_projection_and_near_it(tmp_path, kind):
    measured(tmp_path / "small", (24, 24, 24), kind)  # fills the kernels' cache: the compiler alone takes 100 MB
    found = measured(tmp_path / "large", SHAPE, kind)
    assert max(found["peaks"]) <= found["projected"] <= 1.25 * max(found["peaks"])

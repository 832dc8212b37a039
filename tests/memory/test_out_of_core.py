"""Fields that do not fit: the plan keeps them elsewhere, and the process stays below what it was given."""

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
SHAPE = (512, 96, 96)
PROGRAM = """
import hashlib
import json
import sys

import numpy as np

from daskreg import LNCC, Deformable, machine, register

if __name__ == "__main__":
    state, memory = sys.argv[1:]
    stages = [Deformable(similarity=LNCC(gradient="center"), scales=(2, 1), iterations=(2, 2), tolerance=0)]
    start = machine.peak_bytes()
    use = {"memory": None if memory == "none" else int(memory), "state": state, "threads": 2}
    result = register("fixed.zarr", "moving.zarr", stages, output="run.zarr", overwrite=True, **use)
    peak = machine.peak_bytes()
    digest = hashlib.sha256(np.ascontiguousarray(result.displacement)).hexdigest()
    print(json.dumps({"peak": peak, "start": start, "planned": result.report["planned_bytes"], "digest": digest}))
"""


def run(folder, state, memory="none"):
    done = subprocess.run(
        [sys.executable, "program.py", state, str(memory)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_stays_within_the_memory_it_was_given_and_gives_the_same_bits(tmp_path):
    for seed, role in enumerate(("fixed", "moving")):
        write_image(tmp_path / f"{role}.zarr", np.random.default_rng(seed).random(SHAPE, np.float32), Grid(SHAPE))
    (tmp_path / "program.py").write_text(PROGRAM)
    whole = run(tmp_path, "device")
    for state, less in (("auto", 8), ("host", 8), ("disk", 24)):  # of the 64 bytes of a voxel's fields
        limit = int(whole["planned"] - less * np.prod(SHAPE))
        found = run(tmp_path, state, limit)
        assert found["digest"] == whole["digest"]
        assert found["peak"] < limit, (state, found)
        assert found["peak"] < whole["peak"]

"""Fields and images that do not fit: the plan keeps them elsewhere, and the process stays below what it was given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from daskreg import Grid
from daskreg.storage import write_image
from tests.memory.limits import parent, run_within

ROOT = Path(__file__).parents[2]
SHAPE = (512, 96, 96)
LONG = (3600, 160, 160)  # takes 72 bytes a voxel in memory, ten times LIMIT
LIMIT = 660_000_000
PROGRAM = """
import hashlib
import json
import sys

import numpy as np

from daskreg import LNCC, Deformable, machine, register

if __name__ == "__main__":
    state, memory = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    stages = [Deformable(similarity=LNCC(gradient="center"), scales=(2, 1), iterations=(n, n), tolerance=0)]
    start = machine.peak_bytes()
    use = {"memory": None if memory == "none" else int(memory), "state": state, "threads": 2}
    result = register("fixed.zarr", "moving.zarr", stages, output="run.zarr", overwrite=True, **use)
    peak = machine.peak_bytes()
    digest, u = hashlib.sha256(), result.displacement
    for z in range(0, u.shape[1], 64):
        digest.update(np.ascontiguousarray(u[:, z : z + 64]))
    planned = result.report["planned_bytes"]
    print(json.dumps({"peak": peak, "start": start, "planned": planned, "digest": digest.hexdigest()}))
"""


def run(folder, state, memory="none", *, iterations=2, enforced=False):
    command = [sys.executable, "program.py", state, str(memory), str(iterations)]
    given = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True, "timeout": 500}
    done = run_within(memory, command, **given) if enforced else subprocess.run(command, check=False, **given)
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


def wave(shape, seed):
    """Written plane by plane: smooth, and another one for each seed."""
    y, x = (np.linspace(0, 9 + seed, n, dtype=np.float32) for n in shape[1:])
    plane = np.sin(y)[:, None] * np.cos(x)[None]
    chunks = (64, *shape[1:])
    z = da.linspace(0, 60 + seed, shape[0], chunks=64, dtype=np.float32)
    return (da.sin(z)[:, None, None] * da.from_array(plane, chunks=-1)[None]).rechunk(chunks)


@pytest.mark.slow
@pytest.mark.skipif(parent() is None, reason="this process may make no control group of its own")
def test_ten_times_the_memory_that_the_kernel_allows(tmp_path):
    for seed, role in enumerate(("fixed", "moving")):
        write_image(tmp_path / f"{role}.zarr", wave(LONG, seed), Grid(LONG))
    (tmp_path / "program.py").write_text(PROGRAM)
    assert 72 * np.prod(LONG) > 10 * LIMIT
    found = run(tmp_path, "auto", LIMIT, iterations=1, enforced=True)  # the kernel would have killed it
    whole = run(tmp_path, "device", iterations=1)
    assert found["digest"] == whole["digest"]

"""``apply`` streams: however large the volume, the process stays small, and what it writes is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "stream.py"
THREADS = {"DASK_NUM_WORKERS": "2", "NUMBA_NUM_THREADS": "2"}  # blocks in memory at once: not as many as there are cores


def streamed(folder, gigabytes):
    """What the benchmark of 64 GB reports of fewer, in a process of its own."""
    command = [sys.executable, str(BENCHMARK), "--gigabytes", str(gigabytes), "--folder", str(folder)]
    done = subprocess.run(command, env={**os.environ, **THREADS}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_applying_a_transform_takes_less_memory_than_the_volume(tmp_path):
    """364 MB more than the process had before, of which 260 also for one chunk."""
    streamed(tmp_path, 0.034)  # fills the cache of compiled kernels: the compiler alone takes 100 MB
    found = streamed(tmp_path, 1)
    assert found["input_gigabytes"] > 0.8
    assert found["peak_megabytes"] - found["start_megabytes"] < 600 * found["input_gigabytes"]
    assert found["largest_difference"] < 4  # of 1800: the error of trilinear interpolation of the texture
    assert not list(tmp_path.iterdir())

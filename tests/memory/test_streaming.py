"""``apply`` streams: however large the volume, the process stays small, and what it writes is right."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "stream.py"


def test_a_gigabyte_goes_through_in_less_than_it_is(tmp_path):
    """The benchmark of 64 GB, small: a start alone is about 350 MB."""
    command = [sys.executable, str(BENCHMARK), "--gigabytes", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["input_gigabytes"] > 0.8
    assert told["peak_megabytes"] < 900
    assert told["largest_difference"] < 4  # of 1800: what trilinear interpolation of the texture is off by
    assert not list(tmp_path.iterdir())

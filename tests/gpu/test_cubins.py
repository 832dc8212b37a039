"""A second process on a GPU compiles nothing, and computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, json, time
import numpy as np
from tests.gpu.test_loop import OnDevice, pair, stages
from daskreg.kernels.launch import KERNELS, SWEEPS

start = time.perf_counter()
made = OnDevice(*pair(), stages("lncc")).run(1)
seconds = time.perf_counter() - start
forms = [f for s in SWEEPS.values() for f in s._forms.values()]
forms += [f for k in KERNELS.values() for (device, _), f in k._launchers.items() if device == 1]
stats = [f.stats for f in forms]
print(json.dumps({"hits": sum(sum(s.cache_hits.values()) for s in stats), "misses": sum(sum(s.cache_misses.values()) for s in stats),
                  "displacement": hashlib.sha256(made.displacement.tobytes()).hexdigest(), "seconds": seconds}))
"""


def process(cache: Path) -> dict[str, object]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = process(tmp_path), process(tmp_path)
    print(first, second)
    assert first["hits"] == 0 and first["misses"]
    assert second["misses"] == 0 and second["hits"] == first["misses"]
    assert second["displacement"] == first["displacement"]

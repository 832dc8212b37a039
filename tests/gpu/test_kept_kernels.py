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
import hashlib, json
from tests.gpu.test_loop import OnDevice, pair, stages
from daskreg.kernels.launch import KERNELS, SWEEPS

made = OnDevice(*pair(), stages("lncc")).run(1)
forms = [f for s in SWEEPS.values() for f in s._forms.values()]
forms += [f for k in KERNELS.values() for (device, _), f in k._launchers.items() if device == 1]
count = lambda name: sum(sum(getattr(f.stats, name).values()) for f in forms)
digest = hashlib.sha256(made.displacement.tobytes()).hexdigest()
print(json.dumps({"hits": count("cache_hits"), "misses": count("cache_misses"), "displacement": digest}))
"""


def process(cache: Path) -> dict[str, object]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = process(tmp_path), process(tmp_path)
    assert first["hits"] == 0 < first["misses"]
    assert (second["hits"], second["misses"]) == (first["misses"], 0)
    assert second["displacement"] == first["displacement"]

"""A second process on a GPU compiles nothing, and computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import daskreg
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.cubins import LAUNCHED

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, json
from tests.gpu.test_loop import OnDevice, pair, stages
from daskreg.kernels.compiler.cooperative import COOPERATIVE_KERNELS
from daskreg.kernels.compiler.launch import KERNELS

made = OnDevice(*pair(), stages("lncc")).run(1)
forms = [f for s in COOPERATIVE_KERNELS.values() for f in s._compiled.values()]
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


def test_the_usual_registration_launches_listed_kernels_only(tmp_path: Path) -> None:
    """Else benchmarks/warm_up_signatures.py is to be run again."""
    data = ROOT / "daskreg" / "data"
    pair = (str(data / f"quickstart_{name}_T1_3mm.nii.gz") for name in ("mni2009c", "colin27"))
    before = len(LAUNCHED)
    daskreg.register(*pair, daskreg.PRESETS["brain"], output=tmp_path / "run.zarr", device="cuda")
    launched = {
        (k.name.removesuffix("_cuda"), str(k.identity[2]), precompile.format_types(types)) for k, types in LAUNCHED[before:]
    }
    assert launched <= {(name, str(constants), signature) for name, constants, signature in precompile.warm_up_signatures()}

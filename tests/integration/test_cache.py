"""A second process compiles nothing, whatever environment or checkout it has; it compiles again only what was edited."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import numpy as np
from daskreg.similarity.mse.cpu import squared_difference
from daskreg.similarity.lncc.cpu import gradient_rows
from daskreg.kernels.device import NO_MASK

fixed, moved = np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
squared_difference(fixed.shape, np.float32(1), np.float32(0), fixed, NO_MASK, moved)
gradient_rows((0, *fixed.shape), (np.float32(1),), np.zeros((3, 2, 3, 4), np.float32), fixed, NO_MASK, moved)
made = {"generated": squared_difference.launcher(0).compiled, "row": gradient_rows.launcher().compiled}
count = lambda stats: [sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]
print(json.dumps({name: count(function.stats) for name, function in made.items()}))
"""


def process(checkout, cache):
    """Hits and misses of a process that runs what lies in a folder."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=cache, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder that a process of this checkout has filled."""
    folder = tmp_path_factory.mktemp("cache")
    assert process(ROOT, folder) == {"generated": [0, 1], "row": [0, 1]}
    return folder


@pytest.fixture
def copy(tmp_path):
    """Another checkout."""
    shutil.copytree(ROOT / "daskreg", tmp_path / "daskreg", ignore=shutil.ignore_patterns("__pycache__", "data"))
    return tmp_path


def test_a_second_process_of_another_checkout_compiles_nothing(cache, copy):
    path = copy / "daskreg" / "kernels" / "weights.py"
    path.write_text("# every line is further down\n" + path.read_text())
    assert process(copy, cache) == {"generated": [1, 0], "row": [1, 0]}


def test_a_kernel_is_compiled_again_whose_formula_was_edited(cache, copy):
    path = copy / "daskreg" / "kernels" / "weights.py"
    before = path.read_text()
    path.write_text(before.replace("return weight[z, y, x]", "return weight[z, y, x] * ONE"))
    assert path.read_text() != before
    assert process(copy, cache) == {"generated": [0, 1], "row": [1, 0]}

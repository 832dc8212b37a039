"""A second process compiles nothing: generated launchers and hand-written row kernels come from the disk cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import numpy as np
from daskreg.kernels.difference import difference
from daskreg.kernels.lncc import march_slope
from daskreg.similarity import NOWHERE

fixed, moved = np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
difference(fixed.shape, fixed, NOWHERE, moved)
march_slope((0, *fixed.shape), (np.float32(1),), np.zeros((3, 2, 3, 4), np.float32), fixed, NOWHERE, moved)
made = {"generated": difference.launcher(0), "row": march_slope._compiled}
count = lambda stats: [sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]
print(json.dumps({name: count(function.stats) for name, function in made.items()}))
"""


@pytest.fixture(scope="module")
def hits_and_misses(tmp_path_factory):
    """Of two processes, one after the other, with a cache directory that is empty at first."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}

    def process():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=cache, check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    return process(), process()


@pytest.mark.parametrize("kind", ["generated", "row"])
def test_a_second_process_finds_its_kernels_on_disk(hits_and_misses, kind):
    first, second = hits_and_misses
    assert first[kind] == [0, 1]
    assert second[kind] == [1, 0]

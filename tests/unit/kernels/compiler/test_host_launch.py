"""Several Python threads launch CPU kernels, whatever threads Numba has."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest

from daskreg.kernels.compiler import host_launch
from daskreg.kernels.compiler.configuration import SIMULATED

PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
import numba
import numpy as np
from daskreg.kernels.jacobian import jacobian

def compute(_):
    for _ in range(50):
        made = np.empty((8, 32, 32), np.float32)
        jacobian(made.shape, 0, np.zeros((3, 8, 32, 32), np.float32), made)
    return float(made.min())

with ThreadPoolExecutor(4) as pool:
    print(numba.threading_layer() if compute(0) else "", set(pool.map(compute, range(8))))
"""


@pytest.mark.skipif(SIMULATED, reason="the simulator has no threads of Numba")
def test_threads_of_numba_itself_do_not_end_the_process():
    """They are what Numba takes without libgomp (slim containers) and without libomp (macOS)."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "workqueue {1.0}\n"), done.stderr


@pytest.mark.parametrize(("layer", "most"), [("omp", 2), ("tbb", 2), ("workqueue", 1), (None, 1)])
def test_kernels_are_called_at_the_same_time_only_where_that_is_safe(monkeypatch, layer, most):
    def threading_layer():
        if layer is None:
            raise ValueError("not chosen yet")
        return layer

    monkeypatch.setattr(numba, "threading_layer", threading_layer)
    inside, seen, both = [], [], threading.Barrier(2)

    def kernel(name):
        inside.append(name)
        if most == 2:
            both.wait(30)
        seen.append(len(inside))
        if most == 2:
            both.wait(30)
        inside.remove(name)

    threads = [threading.Thread(target=host_launch.launch, args=(kernel, [name])) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(seen) == most

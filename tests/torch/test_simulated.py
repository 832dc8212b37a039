"""Kernels for CUDA tensors, in Numba's simulator, give what those for CPU tensors give."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.torch.simulated import LOSSES, results


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated") / "results.npz"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "tests.torch.simulated", str(path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(path) as found:
        return dict(found)


@pytest.mark.parametrize("name", LOSSES)
def test_cuda_kernels_agree_with_those_of_the_cpu(simulated, name):
    expected = list(results(name))
    found = [simulated[f"{name}|{k}"] for k in range(len(expected))]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1e-3, float(np.abs(b).max())))

"""Kernels for CUDA tensors, in Numba's simulator, give what those for CPU tensors give."""

import numpy as np
import pytest

from tests.torch.simulated import LOSSES, results


@pytest.fixture(scope="module")
def simulated(simulation):
    code = simulation.process.wait()
    assert code == 0, simulation.errors.read_text()[-3000:]
    with np.load(simulation.results) as found:
        return dict(found)


@pytest.mark.parametrize("name", LOSSES)
def test_cuda_kernels_agree_with_those_of_the_cpu(simulated, name):
    expected = list(results(name))
    found = [simulated[f"{name}|{k}"] for k in range(len(expected))]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1e-3, float(np.nanmax(np.abs(b)))))

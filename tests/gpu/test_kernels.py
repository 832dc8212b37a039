"""Every kernel on a real CUDA device: the same as on the CPU, and the same bits from run to run."""

import numpy as np
import pytest
from numba import cuda

from tests.cases import CASES, COOPERATIVE_CASES
from tests.parity.outputs import outputs, written

pytestmark = pytest.mark.gpu
RELATIVE, ABSOLUTE, LOOSER, UNIT = 2e-5, 2e-6, 5, 2**-7  # the first two and the last as in tests/parity
RESTING = sorted(name for name in CASES if any(a is None for a in CASES[name]()))
NAMES = sorted({*CASES, *COOPERATIVE_CASES} - set(RESTING))
UNITS = {"joint_histogram": 4, "joint_histogram_shared": 16}  # of fixed point, where a device may round a voxel the other way


@pytest.fixture(scope="module")
def both():
    """Results of the CPU, and of the CUDA device twice."""
    assert cuda.is_available(), "these tests need a CUDA device; leave out '-m gpu' where there is none"
    return outputs("cpu", NAMES), outputs("cuda", NAMES), outputs("cuda", NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_device_agrees_with_the_cpu(both, name):
    looser = LOOSER if name in COOPERATIVE_CASES else 1  # other orders of addition, approximate division
    for a, b in zip(both[0][name], both[1][name], strict=True):
        if a.dtype.kind == "f":
            most = looser * ABSOLUTE * max(1.0, float(np.nanmax(np.abs(a))))
            np.testing.assert_allclose(b, a, rtol=UNIT if name.endswith("mixed") else looser * RELATIVE, atol=most)
        else:
            np.testing.assert_allclose(b, a, rtol=0, atol=UNITS.get(name.partition(" ")[0], 0))


@pytest.mark.parametrize("name", NAMES)
def test_the_device_repeats_itself_bit_for_bit(both, name):
    for a, b in zip(both[1][name], both[2][name], strict=True):
        np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("name", RESTING)
def test_the_device_agrees_with_the_cpu_without_displacement(name):
    for a, b in zip(written(name, "cpu"), written(name, "cuda"), strict=True):
        np.testing.assert_allclose(b, a, rtol=RELATIVE, atol=ABSOLUTE * max(1.0, float(np.nanmax(np.abs(a)))))

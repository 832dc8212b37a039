"""Every kernel gives the same on a CUDA device, here its simulator, as on the CPU.

Under the simulator the CPU's results come from another process, without it the simulator's do: either way both are compared.
"""

import numba
import numpy as np
import pytest

from tests.cases import CASES, COOPERATIVE_CASES, cooperative_kernels, kernels
from tests.parity.outputs import elsewhere, outputs

# float32 rounding of a sum of a few hundred terms; a device may fuse multiply and add
RELATIVE, ABSOLUTE = 2e-5, 2e-6
UNIT = 2**-7  # of a bfloat16, to which kernels with mixed storage round their results


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of the CPU and of the CUDA kernels."""
    path = tmp_path_factory.mktemp("parity") / "outputs.npz"
    if numba.config.DISABLE_JIT:
        return elsewhere("cpu", path), outputs("cuda")
    return outputs("cpu"), elsewhere("cuda", path)


def test_every_kernel_has_a_case():
    assert {name.partition(" ")[0] for name in CASES} == set(kernels())
    assert {name.partition(" ")[0] for name in COOPERATIVE_CASES} == set(cooperative_kernels())


@pytest.mark.parametrize("name", sorted((*CASES, *COOPERATIVE_CASES)))
def test_the_cuda_kernel_agrees_with_the_cpu(both, name):
    cpu, cuda = both[0][name], both[1][name]
    assert len(cpu) == len(cuda)
    for a, b in zip(cpu, cuda, strict=True):
        if a.dtype.kind == "f":
            relative = UNIT if name.endswith("mixed") else RELATIVE
            np.testing.assert_allclose(b, a, rtol=relative, atol=ABSOLUTE * max(1.0, float(np.nanmax(np.abs(a)))))
        else:
            np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_case_makes_the_kernel_write(both, name):
    _, *before = CASES[name]()
    before = [a for a in before if isinstance(a, np.ndarray)]
    after = both[0][name]
    changed = len(after) > len(before) or any(
        not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(before, after, strict=True)
    )
    assert changed

"""Every kernel gives the same on a CUDA device, here its simulator, as on the CPU.

Under the simulator the CPU's results come from another process, without it the simulator's do: either way both are compared.
"""

from functools import cache, partial

import numba
import numpy as np
import pytest

from tests.cases import CASES, COOPERATIVE_CASES, cooperative_kernels, kernels
from tests.parity.background import Background, wanted
from tests.parity.outputs import written
from tests.parity.simulator import prepare_simulator

pytestmark = pytest.mark.filterwarnings("ignore:.*overflow encountered in scalar:RuntimeWarning")  # offsets modulo 2^32

# float32 rounding of a sum of a few hundred terms; a device may fuse multiply and add
RELATIVE, ABSOLUTE = 2e-5, 2e-6
SLOW = (  # in the simulator; "lncc_center_tiled of half" has radius 3 and no mask, others the radii 1 and 2
    "lncc_center_tiled of radius 3",
    "lncc_factors_tiled of radius 3",
    "lncc_factors_tiled of radius 4",
    "lncc_gradient_tiled of radius 3",
)
UNIT = 2**-7  # of a bfloat16, to which kernels with mixed storage round their results


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    """What kernels wrote on the CPU and on the CUDA device, by case; tests wait for their own."""
    here, there = ("cuda", "cpu") if numba.config.DISABLE_JIT else ("cpu", "cuda")
    names = wanted(request, (*CASES, *COOPERATIVE_CASES))
    with Background("tests.parity.outputs", there, names, tmp_path_factory.mktemp(there)) as other:
        if here == "cuda":
            prepare_simulator()
        yield {here: cache(partial(written, device=here)), there: lambda name: list(other[name].values())}


def test_every_kernel_has_a_case():
    assert {name.partition(" ")[0] for name in CASES} == set(kernels())
    assert {name.partition(" ")[0] for name in COOPERATIVE_CASES} == set(cooperative_kernels())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in sorted((*CASES, *COOPERATIVE_CASES))],
)
def test_the_cuda_kernel_agrees_with_the_cpu(both, name):
    cpu, cuda = both["cpu"](name), both["cuda"](name)
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
    after = both["cpu"](name)
    changed = len(after) > len(before) or any(
        not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(before, after, strict=True)
    )
    assert changed

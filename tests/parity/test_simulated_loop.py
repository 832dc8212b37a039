"""The loop for GPUs does what the loop for CPUs does: here under the simulator, on a real device in ``tests/gpu``."""

import numpy as np
import pytest

from tests.parity.background import Background, wanted
from tests.parity.simulated import LOSSES, MIXED, NAMES, ON_TWO, OTHERS, TWICE

MODULE = "tests.parity.simulated"
SLOW = (
    "mixed lncc",
    "ring of lncc on two ranks",
    "mixed ring of mse on two ranks",
    "mixed ring of center on two ranks",
)  # in the simulator


def mostly_quick(names):
    """Parameters of a test; the slowest are for the complete suite."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    """Losses and displacements of the CPU and of the simulated device, by case; tests wait for their own."""
    names = list(dict.fromkeys(name for asked in wanted(request, NAMES) for name in (asked.removesuffix(ON_TWO), asked)))
    cpu, cuda = (Background(MODULE, device, names, tmp_path_factory.mktemp(device)) for device in ("cpu", "cuda"))
    with cpu, cuda:
        yield cpu, cuda


@pytest.mark.parametrize("case", [*LOSSES, *OTHERS])
def test_the_device_loop_gives_the_losses_and_the_displacement_of_the_cpu(both, case):
    cpu, cuda = (side[case] for side in both)
    np.testing.assert_allclose(cuda["losses"], cpu["losses"], rtol=1e-5)
    assert np.abs(cpu["u"]).max() > 0.1
    np.testing.assert_allclose(cuda["u"], cpu["u"], atol=1e-4)


@pytest.mark.parametrize("case", mostly_quick(f"mixed {name}" for name in MIXED))
def test_in_mixed_storage_it_comes_out_a_thousandth_of_a_voxel_away(both, case):
    """Two steps of at most a quarter of a voxel, whose directions are known to 8 bits."""
    cpu, cuda = (side[case] for side in both)
    np.testing.assert_allclose(cuda["losses"], cpu["losses"], rtol=1e-3)
    apart = np.abs(cuda["u"] - cpu["u"])
    assert 0 < apart.max() < 5e-3
    assert apart.mean() < 1e-3


@pytest.mark.parametrize("case", mostly_quick(name + ON_TWO for name in TWICE))
def test_two_ranks_come_to_the_same_bits(both, case):
    """Edges first, then what lies between them; halos, the longest step and the loss go from rank to rank."""
    _, cuda = both
    one, two = cuda[case.removesuffix(ON_TWO)], cuda[case]
    np.testing.assert_array_equal(two["losses"], one["losses"])
    np.testing.assert_array_equal(two["u"], one["u"])

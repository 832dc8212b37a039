"""The loop for GPUs does what the loop for CPUs does: here under the simulator, on a real device in ``tests/gpu``."""

import numpy as np
import pytest

from tests.parity.outputs import side_by_side
from tests.parity.simulated import LOSSES, MIXED, TWICE


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Losses and displacements of the CPU and of the simulated device, from processes of their own."""
    path = tmp_path_factory.mktemp("loop") / "found.npz"
    return [_all_of(side_by_side("tests.parity.simulated", device, path)) for device in ("cpu", "cuda")]


def _all_of(files):
    """What several files hold."""
    return {name: array for file in files for name, array in np.load(file).items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_device_loop_gives_the_losses_and_the_displacement_of_the_cpu(both, loss):
    cpu, cuda = both
    np.testing.assert_allclose(cuda[f"{loss} losses"], cpu[f"{loss} losses"], rtol=1e-5)
    assert np.abs(cpu[f"{loss} u"]).max() > 0.1
    np.testing.assert_allclose(cuda[f"{loss} u"], cpu[f"{loss} u"], atol=1e-4)


@pytest.mark.parametrize("case", MIXED)
def test_in_mixed_storage_it_comes_out_a_thousandth_of_a_voxel_away(both, case):
    """Two steps of at most a quarter of a voxel, whose directions are known to 8 bits."""
    cpu, cuda = both
    np.testing.assert_allclose(cuda[f"mixed {case} losses"], cpu[f"mixed {case} losses"], rtol=1e-3)
    apart = np.abs(cuda[f"mixed {case} u"] - cpu[f"mixed {case} u"])
    assert 0 < apart.max() < 5e-3
    assert apart.mean() < 1e-3


@pytest.mark.parametrize("case", TWICE)
def test_two_ranks_come_to_the_same_bits(both, case):
    """Edges first, then what lies between them; halos, the longest step and the loss go from rank to rank."""
    _, cuda = both
    np.testing.assert_array_equal(cuda[f"{case} on two ranks losses"], cuda[f"{case} losses"])
    np.testing.assert_array_equal(cuda[f"{case} on two ranks u"], cuda[f"{case} u"])

"""The loop for GPUs does what the loop for CPUs does: here under the simulator, on a real device in ``tests/gpu``."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity.outputs import SIMULATED
from tests.parity.simulated import LOSSES, MIXED


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Losses and displacements of the CPU and of the simulated device, each from a process of its own."""
    folder, root = tmp_path_factory.mktemp("loop"), Path(__file__).parents[2]
    for device in ("cpu", "cuda"):
        environment = {k: v for k, v in os.environ.items() if k not in SIMULATED} | (SIMULATED if device == "cuda" else {})
        command = [sys.executable, "-W", "ignore", "-m", "tests.parity.simulated", device, str(folder / f"{device}.npz")]
        subprocess.run(command, env=environment, cwd=root, check=True, timeout=280)
    return np.load(folder / "cpu.npz"), np.load(folder / "cuda.npz")


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


def test_a_ring_of_two_ranks_gives_the_bits_of_one_in_mixed_storage(both):
    for kind in ("losses", "u"):
        np.testing.assert_array_equal(both[1][f"ring {kind}"], both[1][f"mixed mse {kind}"])

"""``Transform.apply(device="cuda")`` gives what the CPU gives; here in the simulator, in a process of its own."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.parity.background import ROOT, environment

SCRIPT = """
import sys
import numpy as np
from daskreg import Grid, Transform
from tests.parity.simulator import prepare_simulator

if sys.argv[1] == "cuda":
    prepare_simulator()

grid, rng = Grid((7, 6, 8), (1.2, 1.0, 0.9), unit="mm"), np.random.default_rng(0)
d = rng.normal(0, 0.4, (3, *grid.shape)).astype(np.float32)
first = Transform.of(np.eye(4) + 0.02 * rng.normal(size=(4, 4)) * np.array([[1], [1], [1], [0]]), grid, d, grid)
chain, image = first.then(first), (rng.random(grid.shape) * 5).astype(np.uint8)
kinds = ("linear", "nearest", "cubic", "label")
np.savez(sys.argv[2], **{k: chain.apply(image, interpolation=k, device=sys.argv[1]).compute() for k in kinds})
"""


def test_the_device_changes_nothing_but_rounding(tmp_path):
    def run(device):
        command = [sys.executable, "-c", SCRIPT, device, str(tmp_path / f"{device}.npz")]
        subprocess.run(command, env=environment(device), cwd=ROOT, check=True)

    with ThreadPoolExecutor() as both:
        list(both.map(run, ("cpu", "cuda")))
    cpu, cuda = (np.load(tmp_path / f"{d}.npz") for d in ("cpu", "cuda"))
    for kind in cpu.files:
        assert len(np.unique(cpu[kind])) > 3
        assert (cpu[kind] != cuda[kind]).mean() < 0.01  # a number rounded the other way

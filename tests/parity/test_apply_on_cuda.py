"""``Transform.apply(device="cuda")`` gives what the CPU gives; here in the simulator, in a process of its own."""

import os
import subprocess
import sys

import numpy as np

SCRIPT = """
import sys
import numpy as np
from daskreg import Grid, Transform

grid, rng = Grid((7, 6, 8), (1.2, 1.0, 0.9), unit="mm"), np.random.default_rng(0)
d = rng.normal(0, 0.4, (3, *grid.shape)).astype(np.float32)
first = Transform.of(np.eye(4) + 0.02 * rng.normal(size=(4, 4)) * np.array([[1], [1], [1], [0]]), grid, d, grid)
chain, image = first.then(first), (rng.random(grid.shape) * 5).astype(np.uint8)
kinds = ("linear", "nearest", "cubic", "label")
np.savez(sys.argv[2], **{k: chain.apply(image, interpolation=k, device=sys.argv[1]).compute() for k in kinds})
"""


def test_the_device_changes_nothing_but_rounding(tmp_path):
    simulated = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    real = {k: v for k, v in os.environ.items() if k not in ("NUMBA_ENABLE_CUDASIM", "NUMBA_DISABLE_JIT")}
    for device, environment in (("cpu", real), ("cuda", simulated)):
        subprocess.run([sys.executable, "-c", SCRIPT, device, str(tmp_path / f"{device}.npz")], env=environment, check=True)
    cpu, cuda = (np.load(tmp_path / f"{d}.npz") for d in ("cpu", "cuda"))
    for kind in cpu.files:
        assert len(np.unique(cpu[kind])) > 3
        assert (cpu[kind] != cuda[kind]).mean() < 0.01  # a number rounded the other way

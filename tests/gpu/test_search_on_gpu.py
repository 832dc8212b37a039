"""The global search refines its candidates where the images are."""

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.config import Search
from daskreg.engine.images import Image
from daskreg.engine.initial import run_initial
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.kernels.device import CPU, Device
from tests.phantoms import blobs

pytestmark = pytest.mark.gpu


def start(device):
    """What is found for an image moved by many voxels, and the losses of all candidates."""
    fixed = np.pad(blobs((40, 44, 36), 3), 12)
    moving, grid = np.roll(fixed, (9, -7, 10), (0, 1, 2)), Grid(fixed.shape)
    images = Image.whole(device.put(fixed), grid), Image.whole(device.put(moving), grid)
    found, report = run_initial(Search(size=48), images, np.eye(4), SingleRank(), Watch())
    return found, [c["loss"] for c in report.detail["refined"]]


def test_the_start_is_that_of_the_processor():
    device = Device("cuda")
    device.use()
    (cpu, losses), (cuda, others) = start(CPU), start(device)
    assert min(others) == pytest.approx(min(losses), abs=2e-3)
    np.testing.assert_allclose(cuda, cpu, atol=0.05)
    np.testing.assert_allclose(cpu[:3, 3], (9, -7, 10), atol=0.3)

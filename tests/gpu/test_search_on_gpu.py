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
    """What is found for an image moved by many voxels."""
    fixed = np.pad(blobs((40, 44, 36), 3), 12)
    moving, grid = np.roll(fixed, (9, -7, 10), (0, 1, 2)), Grid(fixed.shape)
    images = Image.whole(device.put(fixed), grid), Image.whole(device.put(moving), grid)
    return run_initial(Search(size=48), images, np.eye(4), SingleRank(), Watch())[0]


def test_the_start_is_that_of_the_processor_but_for_the_rounding_of_few_iterations():
    device = Device("cuda")
    device.use()
    cpu, cuda = start(CPU), start(device)
    center = np.array([31.5, 33.5, 29.5])
    for found in (cpu, cuda):
        np.testing.assert_allclose(found[:3, :3] @ center + found[:3, 3] - center, (9, -7, 10), atol=0.3)
    np.testing.assert_allclose(cuda[:3, :3], cpu[:3, :3], atol=0.02)

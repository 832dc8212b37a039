"""The bundled pair at 1 mm, which a demonstration within little memory registers."""

import numpy as np

from daskreg.grid import Grid
from daskreg.storage import open_volume
from daskreg.workflows.demo import _halved
from tests.phantoms import rotation


def test_voxels_of_half_the_size_lie_where_their_values_belong():
    coarse = Grid((6, 7, 8), (2.0, 1.5, 1.0), (3.0, -4.0, 5.0), tuple(map(tuple, rotation((7, -9, 13)))))
    slope = np.array([0.5, -2.0, 1.0])

    def values(grid):
        return grid.to_world(np.stack(np.indices(grid.shape), -1)) @ slope

    voxels, fine = _halved(open_volume(values(coarse).astype(np.float32), grid=coarse))
    inner = (slice(1, -1),) * 3  # the outermost voxels repeat the border's
    np.testing.assert_allclose(voxels[inner], values(fine)[inner], atol=1e-4)
    np.testing.assert_allclose(fine.center, coarse.center)
    np.testing.assert_allclose(fine.spacing, np.divide(coarse.spacing, 2))

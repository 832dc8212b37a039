"""What daskreg makes of images of ITK itself: ``python -m tests.libraries.itk_images`` fails where that is wrong."""

import itk
import numpy as np

from daskreg.grid import Grid
from daskreg.storage import open_stack, open_volume
from tests.unit.storage.stores import SHAPE, voxels

TURN = ((1.0, 0.0, 0.0), (0.0, 0.8, -0.6), (0.0, 0.6, 0.8))
GRID = Grid(SHAPE, (2.0, 1.0, 0.5), (5.0, 6.0, 7.0), TURN, "millimeter", True)


def check():
    """Raises AssertionError."""
    image = itk.image_from_array(voxels())
    image.SetSpacing(GRID.spacing[::-1])
    image.SetOrigin(GRID.origin[::-1])
    image.SetDirection(np.asarray(GRID.direction)[::-1, ::-1].copy())
    found = open_volume(image)
    np.testing.assert_array_equal(found.read(), voxels())
    np.testing.assert_allclose(found.grid.index_to_world, GRID.index_to_world)
    assert (found.grid.unit, found.grid.oriented) == ("millimeter", True)
    vectors = itk.image_from_array(np.stack([voxels().astype(np.float32)] * 3, -1), is_vector=True)
    assert open_stack(vectors).axes == ("c",)


if __name__ == "__main__":
    check()

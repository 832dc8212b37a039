"""Images of xarray and ITK themselves; what the other tests say of stand-ins."""

import numpy as np
import pytest

from daskreg.grid import Grid
from daskreg.storage import open_stack, open_volume
from tests.unit.storage.stores import SHAPE, voxels

pytestmark = pytest.mark.libraries
TURN = ((1.0, 0.0, 0.0), (0.0, 0.8, -0.6), (0.0, 0.6, 0.8))
GRID = Grid(SHAPE, (2.0, 1.0, 0.5), (5.0, 6.0, 7.0), TURN, "millimeter", True)


@pytest.mark.filterwarnings("ignore")  # of SWIG, which as errors end the process
def test_images_of_itk():
    import itk

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


def test_arrays_of_xarray():
    import dask.array as da
    import xarray as xr

    coords = {n: (n, 5 + 2.0 * np.arange(k), {"units": "um"}) for n, k in zip("zyx", SHAPE)}
    for data in (voxels(), da.from_array(voxels(), chunks=3)):
        found = open_volume(xr.DataArray(data, dims=("z", "y", "x"), coords=coords, name="brain"))
        np.testing.assert_array_equal(found.read(), voxels())
        assert (found.grid.spacing, found.grid.origin, found.grid.unit) == ((2, 2, 2), (5, 5, 5), "micrometer")
    times = xr.DataArray(np.stack([voxels()] * 3), dims=("t", "z", "y", "x"), coords={**coords, "t": ("t", [0.0, 30.0, 60.0])})
    assert open_stack(times).lead[0].scale == 30.0
    assert open_volume(times[1]).shape == SHAPE

"""Images of xarray and ITK themselves; what the other tests say of stand-ins."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daskreg.storage import open_stack, open_volume
from tests.unit.storage.stores import SHAPE, voxels

pytestmark = pytest.mark.libraries
ROOT = Path(__file__).parents[2]


def test_images_of_itk():
    """In a process of its own: where ITK is loaded beside many other libraries, Python crashes when it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.libraries.itk_images"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


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

"""Images that are computed while they are read, through the HTTP stores of zarr-python and of daskreg itself."""

import dask.array as da
import numpy as np
import pytest
import zarr

from daskreg.storage import open_volume, write_image
from daskreg.workflows.apply import apply
from daskreg.workflows.view import view
from tests.phantoms import blobs
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run

pytestmark = pytest.mark.libraries


def test_zarr_dask_and_daskreg_read_what_apply_writes(tmp_path):
    make_run(tmp_path / "run.zarr", affine(), displacement())
    write_image(tmp_path / "moving.ome.zarr", blobs(MOVING.shape), MOVING)
    wanted = apply(tmp_path / "run.zarr", tmp_path / "moving.ome.zarr").data.compute()
    with view(tmp_path / "run.zarr", tmp_path / "moving.ome.zarr", fixed=False) as made:
        for version in ("0.4", "0.5"):
            address = made.address("moved", version)
            np.testing.assert_array_equal(zarr.open_group(address, mode="r")["0"][...], wanted)
            np.testing.assert_array_equal(da.from_zarr(address, component="0"), wanted)
            volume = open_volume(address)
            np.testing.assert_array_equal(volume.data, wanted)
            assert volume.grid == FIXED

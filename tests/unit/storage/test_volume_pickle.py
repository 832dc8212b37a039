"""Volumes are read by other processes, which may have another working directory."""

import cloudpickle
import dask.array as da
import numpy as np
import pytest

from daskreg.grid import Grid
from daskreg.storage import open_volume
from daskreg.storage.images import write_image


@pytest.mark.parametrize("name", ["image.ome.zarr", "image.nii.gz", "image.nii"])
def test_a_relative_address_is_read_from_another_folder(name, tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).random((9, 8, 7), np.float32)
    monkeypatch.chdir(tmp_path)
    write_image(name, da.from_array(voxels), Grid(voxels.shape, unit="mm"))
    sent = cloudpickle.dumps(open_volume(name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(cloudpickle.loads(sent).read(), voxels)

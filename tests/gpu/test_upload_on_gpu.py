"""Voxels that are decoded into page-locked memory and converted on the GPU are those that the host reads."""

import numpy as np
import pytest

from daskreg.cluster import upload as module
from daskreg.cluster.upload import upload
from daskreg.grid import Grid, Span
from daskreg.kernels.device import Device, host
from daskreg.storage import open_volume, write_image

pytestmark = pytest.mark.gpu
SHAPE = 150, 130, 100


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_the_gpu_gets_the_voxels_of_the_host(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 20)  # several pieces, rooms used again
    voxels = np.random.default_rng(0).uniform(0, 250, SHAPE).astype(dtype)
    write_image(tmp_path / "a.ome.zarr", voxels, Grid(SHAPE, (1.0, 1.0, 1.0)))
    volume, device, planes = open_volume(tmp_path / "a.ome.zarr"), Device("cuda"), Span(3, 141)
    device.use()
    found = device.xp.full((len(planes), *SHAPE[1:]), np.nan, np.float32)
    assert volume.reads_stored()
    upload(volume, planes, found)
    np.testing.assert_array_equal(host(found), volume.planes(planes))

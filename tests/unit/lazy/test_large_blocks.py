"""Blocks that read much of an image are sampled while it is read part by part, with the same bits."""

import dask.array as da
import numpy as np
import pytest

from daskreg.grid import Grid, Region
from daskreg.lazy import blocks, resample
from daskreg.lazy.blocks import larger_block
from daskreg.lazy.resample import resampled
from daskreg.lazy.transform import Transform
from daskreg.planning import source
from daskreg.storage import Volume
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement

VOXELS = 1000 * np.random.default_rng(2).random(MOVING.shape)


@pytest.mark.parametrize(
    ("interpolation", "dtype"), [("linear", np.uint16), ("linear", np.float32), ("linear", np.float64), ("cubic", np.uint16)]
)
def test_a_block_has_the_same_bits_however_much_it_reads(interpolation, dtype, monkeypatch):
    image = Volume(da.from_array(VOXELS.astype(dtype), chunks=(12, 12, 40)), MOVING, "image")
    for phi in (Transform.of(affine(), FIXED), Transform.of(affine(), FIXED, displacement(), MOVING)):
        given = image, FIXED, phi.links, phi.unit, interpolation
        wanted = resampled(*given, fill=7).compute()
        with monkeypatch.context() as small:
            small.setattr(source, "LEAST", 1 << 14)
            small.setattr(source, "MOST", 1 << 14)
            for module in (blocks, resample):
                small.setattr(module, "CACHED_BYTES", 0)
            small.setattr(resample, "READ_BYTES", 1 << 16)
            found = resampled(*given, fill=7).compute()
        np.testing.assert_array_equal(found, wanted)


class Counted:
    """Counts how many voxels are read of an array at once, and in all."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype, self.ndim = voxels, voxels.shape, voxels.dtype, 3
        self.most = self.all = 0

    def __getitem__(self, index):
        found = self.voxels[index]
        self.most, self.all = max(self.most, found.size), self.all + found.size
        return found


def test_an_image_much_finer_than_the_grid_is_read_once_and_in_parts(monkeypatch):
    for module in (blocks, resample):
        monkeypatch.setattr(module, "CACHED_BYTES", 0)
    monkeypatch.setattr(resample, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(source, "LEAST", 1 << 14)
    monkeypatch.setattr(source, "MOST", 1 << 14)
    monkeypatch.setattr(blocks, "EDGE", 8)
    counted = Counted(np.random.default_rng(0).random((48, 64, 80)).astype(np.float32))
    data = da.from_array(counted, chunks=(1, 64, 80), name=False, meta=np.empty((0, 0, 0), np.float32), inline_array=True)
    turned = np.eye(4)
    turned[:3, :3] = [[0.98, 0.15, -0.1], [-0.15, 0.98, 0.1], [0.1, -0.1, 0.98]]
    image, grid = Volume(data, Grid((48, 64, 80), unit="mm"), "image"), Grid((12, 16, 20), (4, 4, 4), (1.5,) * 3, unit="mm")
    resampled(image, grid, Transform.of(turned, grid).links, "mm", "linear").compute()
    assert counted.all <= 1.2 * counted.voxels.size  # corners are looked at for what lies outside
    assert counted.most <= 1 << 14


def test_blocks_grow_along_x_first():
    assert larger_block((200, 250, 312), (128, 128, 128)) == (200, 250, 312)
    assert larger_block((2000, 2500, 3120), (128, 128, 128)) == (128, 128, 1024)
    assert larger_block((2000, 2500, 312), (64, 128, 128), 1) == (64, 832, 312)
    assert Region((0, 0, 0), larger_block((9, 9, 9), (9, 9, 9))).size == 729

"""Boxes read straight from a Zarr array are those that Dask reads."""

from dataclasses import replace
from itertools import permutations

import dask.array as da
import numpy as np
import pytest

from daskreg.grid import Grid, Region
from daskreg.storage import open_volume
from daskreg.storage.images import write_image
from daskreg.storage.zarr import stored


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image, and two channels of one, in chunks of 64."""
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    one, two = rng.integers(0, 60000, (70, 130, 66), np.uint16), rng.random((2, 66, 20, 65)).astype(np.float32)
    write_image(folder / "one.ome.zarr", one, Grid(one.shape))
    write_image(folder / "two.ome.zarr", two, Grid(two.shape[1:]), axes=("c",))
    return {f"{folder}/one.ome.zarr": one, f"{folder}/two.ome.zarr::channel=1": two[1]}


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("piece", [1, 1 << 30])
def test_boxes_are_the_voxels_whatever_the_pieces_and_the_order_of_axes(images, order, piece, monkeypatch):
    monkeypatch.setattr(stored, "PIECE_BYTES", piece)
    for address, voxels in images.items():
        volume, right = open_volume(address).permute(order), voxels.transpose(order).astype(np.float32)
        box = Region.of((3, 2, 1), (n - 1 for n in right.shape))
        assert volume.stored is not None
        np.testing.assert_array_equal(volume.read(box), right[box.slices])
        np.testing.assert_array_equal(volume.read(), right)


def test_a_volume_whose_voxels_were_replaced_reads_the_new_ones(images):
    volume = open_volume(next(iter(images)))
    other = replace(volume, data=da.zeros(volume.shape, dtype=np.uint16))
    assert not other.read().any()
    assert not other.permute((2, 0, 1)).read().any()

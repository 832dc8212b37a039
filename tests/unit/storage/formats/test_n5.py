"""N5: datasets and groups of levels, whose blocks have headers, and may be missing."""

import json
import pickle

import fsspec
import numpy as np
import pytest

from daskreg.errors import GridError, NotFound, Unreadable
from daskreg.storage import open_stack, open_volume
from daskreg.storage.digest import digest
from tests.unit.storage.n5 import group, write
from tests.unit.storage.stores import SHAPE, voxels


@pytest.fixture
def store(tmp_path):
    group(tmp_path / "a.n5", n5="2.0.0")
    write(tmp_path / "a.n5" / "raw", voxels(), resolution=[0.5, 1, 2], units=["um"] * 3)
    return tmp_path / "a.n5"


@pytest.mark.parametrize("kind", ["raw", "gzip", "zlib", "bzip2"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_blocks_are_decoded_and_their_edges_cut(tmp_path, kind, dtype):
    group(tmp_path / "a.n5", n5="2.0.0")
    write(tmp_path / "a.n5" / "raw", voxels(dtype=dtype), (4, 5, 3), kind)
    volume = pickle.loads(pickle.dumps(open_volume(f"{tmp_path / 'a.n5'}::spacing=1")))
    np.testing.assert_array_equal(volume.data, voxels(dtype=dtype))
    np.testing.assert_array_equal(volume.data[2:5, 1:6, 3:], voxels(dtype=dtype)[2:5, 1:6, 3:])
    assert volume.data[0, 0].compute().dtype == np.dtype(dtype)


def test_the_voxel_size_is_that_of_the_attributes(store):
    grid = open_volume(store).grid
    assert (grid.spacing, grid.unit) == ((2, 1, 0.5), "micrometer")
    assert digest(store)["kind"] == "folder"
    group(store / "raw", **json.loads((store / "raw" / "attributes.json").read_text())
          | {"pixelResolution": {"dimensions": [3, 4, 5], "unit": "nm"}})  # fmt: skip
    assert open_volume(store / "raw").grid.spacing == (5, 4, 3)


def test_levels_are_blocks_of_the_first(tmp_path):
    group(tmp_path / "a.n5" / "image", resolution=[1, 1, 2])
    for k in range(2):
        write(tmp_path / "a.n5" / "image" / f"s{k}", voxels((4, 6, 8))[:: 2**k, :: 2**k, :: 2**k])
    volume = open_volume(f"{tmp_path / 'a.n5'}::array=image,level=1")
    assert (volume.grid.spacing, volume.grid.origin) == ((4, 2, 2), (1, 0.5, 0.5))
    assert [level.spacing for level in volume.levels] == [(2, 1, 1), (4, 2, 2)]


def test_several_datasets_are_listed_and_axes_are_named(store):
    write(store / "labels" / "nuclei", np.stack([voxels()] * 2), (1, 4, 4, 4), axes=["x", "y", "z", "t"])
    with pytest.raises(Unreadable, match=r"2 datasets; choose one with '::array=labels/nuclei' \(there are labels/nuclei, raw\)"):
        open_volume(store)
    assert open_stack(f"{store}::array=labels/nuclei,spacing=1").axes == ("t",)
    with pytest.raises(NotFound, match="does not exist"):
        open_volume(f"{store}::array=nosuch")


def test_a_missing_block_is_named_and_filled_where_that_is_said(store):
    (store / "raw" / "1" / "0" / "0").unlink()
    with pytest.raises(Unreadable, match="the block 1/0/0 is missing; it would be read as 0"):
        open_volume(store).read()
    filled = open_volume(f"{store}::missing=fill").read()
    np.testing.assert_array_equal(filled[:4, :4, 4:8], 0)
    np.testing.assert_array_equal(filled[4:], voxels()[4:])


def test_damage_is_a_sentence(store):
    block = store / "raw" / "0" / "0" / "0"
    block.write_bytes(block.read_bytes()[:30])
    with pytest.raises(Unreadable, match="the block 0/0/0 is damaged"):
        open_volume(store).read()
    for change in ({"dimensions": [0, 1, 2]}, {"blockSize": [4, 4]}, {"dataType": "string"}, {"compression": {"type": "lz4"}}):
        tree = json.loads((store / "raw" / "attributes.json").read_text())
        group(store / "bad", **tree | change)
        with pytest.raises(Unreadable, match=r"bad"):
            open_volume(f"{store}::array=bad,spacing=1")
    with pytest.raises(GridError, match="states no voxel size"):
        open_volume(write(store / "unsized", voxels()))


def test_a_store_behind_a_url(store):
    fsspec.filesystem("memory").put(str(store), "/n5/a.n5", recursive=True)
    volume = open_volume("memory://n5/a.n5::array=raw")
    np.testing.assert_array_equal(volume.read(), voxels())
    assert volume.shape == SHAPE

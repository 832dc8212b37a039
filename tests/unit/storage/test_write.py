"""Outputs are whole or not there."""

import errno
import os
from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from daskreg.errors import GridError, OutOfSpace, OutputError, OutputExists
from daskreg.grid import Grid
from daskreg.storage import RunStore, open_volume, write_image
from daskreg.storage.registry import transform_formats
from daskreg.storage.zarr.pyramid import block_mean, block_mode, pyramid

FLIPPED = ((-1, 0, 0), (0, 0, 1), (0, 1, 0))
GRID = Grid((20, 70, 130), (2.0, 1.0, 1.0), (5.0, -6.0, 7.0), FLIPPED, "um", True)


def image(dtype="float32"):
    return np.random.default_rng(0).integers(0, 200, GRID.shape).astype(dtype)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_written_store_is_read_back_the_same(tmp_path, lazy, place):
    path = str(tmp_path / "a.ome.zarr") if place == "local" else f"memory://{tmp_path.name}/a.ome.zarr"
    write_image(path, da.from_array(image(), chunks=(7, 70, 33)) if lazy else image(), GRID)
    v = open_volume(path)
    assert v.grid == GRID
    np.testing.assert_array_equal(v.read(), image())
    coarse = open_volume(path + "::level=1")
    assert coarse.grid == GRID.coarsen((1, 2, 2))
    np.testing.assert_allclose(coarse.read()[0, 0, 0], image()[0, :2, :2].mean(), rtol=1e-6)


def test_the_metadata_is_valid_ngff_and_states_orientation_by_itself(tmp_path):
    write_image(tmp_path / "a.zarr", image(), GRID)
    group = zarr.open_group(str(tmp_path / "a.zarr"))
    Image.from_zarr(group)
    own = dict(group.attrs)
    del own["daskreg"]
    group.attrs.put(own)
    g = open_volume(tmp_path / "a.zarr").grid
    assert g.oriented
    np.testing.assert_allclose(g.index_to_world, GRID.index_to_world, atol=1e-9)


def test_labels_keep_their_values_at_every_level(tmp_path):
    labels = image("uint16") // 100 * 7
    write_image(tmp_path / "a.zarr", labels, GRID, labels=True)
    v = open_volume(tmp_path / "a.zarr::level=1")
    np.testing.assert_array_equal(v.read(), majority_by_hand(labels, (1, 2, 2)))
    np.testing.assert_allclose(v.grid.origin, GRID.coarsen((1, 2, 2)).origin)


def test_the_mean_of_negative_zeros_is_negative_zero():
    assert np.signbit(block_mean(np.full((3, 3, 3), -0.0, np.float32), (2, 2, 2))).all()


def test_block_means_at_the_edge_are_of_the_voxels_there():
    np.testing.assert_allclose(block_mean(np.array([[[1.0, 3.0, 5.0]]]), (2, 2, 2)), [[[2.0, 5.0]]])
    np.testing.assert_array_equal(block_mean(np.array([[[1, 4, 250]]], np.uint8), (1, 1, 2)), [[[2, 250]]])


def test_pyramids_halve_the_fine_axes_first_and_stop():
    assert pyramid(GRID) == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert pyramid(Grid((5, 5, 5))) == [(1, 1, 1)]
    assert pyramid(Grid((1, 200, 1)))[-1] == (1, 4, 1)


@pytest.mark.parametrize("ending", ["nii.gz", "zarr"])
def test_nothing_is_overwritten_without_overwrite(tmp_path, ending):
    path = str(tmp_path / f"a.{ending}")
    write_image(path, image(), GRID)
    with pytest.raises(OutputExists, match="--overwrite"):
        write_image(path, image() + 1, GRID)
    write_image(path, image() + 1, GRID, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).read(), image() + 1)
    assert os.listdir(tmp_path) == [f"a.{ending}"]


def test_a_folder_of_other_things_is_never_deleted(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="neither image nor run"):
        write_image(tmp_path / "a.zarr", image(), GRID, overwrite=True)
    assert (tmp_path / "a.zarr" / "thesis.tex").exists()


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "zarr"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EROFS, OutputError)])
def test_a_full_disk_leaves_the_old_output_and_nothing_else(tmp_path, monkeypatch, ending, number, kind):
    path = str(tmp_path / f"a.{ending}")
    write_image(path, image(), GRID)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(
        "daskreg.storage.formats.nifti.slabs" if "nii" in ending else "daskreg.storage.formats.ome_zarr._store", fail
    )
    with pytest.raises(kind, match="a\\."):
        write_image(path, image() + 1, GRID, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).read(), image())
    assert os.listdir(tmp_path) == [f"a.{ending}"]


def test_a_store_whose_path_zarr_would_take_apart_is_refused(tmp_path):
    """It would write into what is before the colons."""
    (tmp_path / "a").mkdir()
    for write in (
        lambda path: write_image(path, image(), GRID),
        lambda path: RunStore.create(path, fixed=GRID, moving=GRID),
        transform_formats.to_write,
    ):
        with pytest.raises(OutputError, match=r"a::b\.zarr: '::' in the path of a Zarr store chains file systems"):
            write(f"{tmp_path}/a::b.zarr")
    write_image(f"{tmp_path}/a::b.nii", image(), GRID)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "a::b.nii"]


def test_impossible_paths_and_shapes_are_refused(tmp_path):
    with pytest.raises(OutputError, match="create it first"):
        write_image(tmp_path / "none" / "a.nii", image(), GRID)
    with pytest.raises(OutputError, match="ending"):
        write_image(tmp_path / "a.png", image(), GRID)
    with pytest.raises(GridError, match="do not fit"):
        write_image(tmp_path / "a.nii", image()[1:], GRID)


def majority_by_hand(labels, step):
    """Voxel by voxel; of those that tie, the smallest."""
    out = np.empty([-(-n // k) for n, k in zip(labels.shape, step)], labels.dtype)
    for place in np.ndindex(out.shape):
        block = labels[tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, step))].ravel().tolist()
        out[place] = max(block, key=lambda v: (block.count(v), -v))
    return out


@pytest.mark.parametrize("step", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float32])
def test_labels_of_a_block_become_the_most_frequent_one(step, dtype):
    labels = np.random.default_rng(0).integers(0, 3, (7, 8, 9)).astype(dtype)
    found = block_mode(np.stack([labels, labels[::-1]]), step)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], majority_by_hand(labels, step))
    np.testing.assert_array_equal(found[1], majority_by_hand(labels[::-1], step))


def test_levels_of_labels_are_modes_of_the_level_below_at_block_centres(tmp_path):
    grid = Grid((140, 150, 133), (1.0, 1.0, 1.0), (5.0, 6.0, 7.0), unit="mm")
    labels = np.random.default_rng(0).integers(0, 3, (20, 22, 19)).astype(np.uint16).repeat(7, 0).repeat(7, 1).repeat(7, 2)
    labels = np.ascontiguousarray(labels[:140, :150, :133])
    write_image(tmp_path / "l.ome.zarr", labels, grid, labels=True)
    levels = [zarr.open_array(tmp_path / "l.ome.zarr" / str(k))[:] for k in range(3)]
    for fine, coarse in pairwise(levels):
        np.testing.assert_array_equal(coarse, block_mode(fine, (2, 2, 2)))
    np.testing.assert_array_equal(levels[1][:20, :20, :20], majority_by_hand(labels[:40, :40, :40], (2, 2, 2)))
    assert open_volume(f"{tmp_path / 'l.ome.zarr'}::level=1").grid.origin == (5.5, 6.5, 7.5)
    reported = zarr.open_group(tmp_path / "l.ome.zarr").attrs["ome"]["multiscales"][0]
    assert reported["type"] == "mode"
    assert reported["datasets"][1]["coordinateTransformations"][1]["translation"] == [5.5, 6.5, 7.5]


def test_levels_that_were_sampled_are_read_where_they_are(tmp_path):
    grid = Grid((140, 40, 40), unit="mm")
    write_image(tmp_path / "l.ome.zarr", np.zeros(grid.shape, np.uint8), grid, labels=True)
    group = zarr.open_group(tmp_path / "l.ome.zarr", mode="r+")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["type"] = "sampled"
    group.attrs["ome"] = ome
    assert open_volume(f"{tmp_path / 'l.ome.zarr'}::level=1").grid.origin == (0, 0, 0)

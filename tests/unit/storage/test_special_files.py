"""Pipes, devices and folders in the place of files: reading them would never end, or give nothing; refused at once."""

import os
import sys

import numpy as np
import pytest

import daskreg
from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.storage import open_volume, write_image

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes"), pytest.mark.timeout(60)]
SHAPE = (16, 16, 16)


@pytest.fixture
def chunk(tmp_path):
    """A store, and the file of one of its chunks."""
    write_image(tmp_path / "a.ome.zarr", np.ones(SHAPE, np.uint8), Grid(SHAPE))
    return tmp_path / "a.ome.zarr", next(f for f in (tmp_path / "a.ome.zarr" / "0" / "c").rglob("*") if f.is_file())


def pipe(place):
    os.mkfifo(place)


def device(place):
    place.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device])
def test_a_chunk_that_is_no_file_is_refused(chunk, make):
    store, place = chunk
    place.unlink()
    make(place)
    with pytest.raises(Unreadable, match="is a pipe, a socket or a device"):
        open_volume(store).read()


def test_a_folder_in_the_place_of_a_chunk_is_a_missing_chunk(chunk):
    store, place = chunk
    place.unlink()
    place.mkdir()
    with pytest.raises(Unreadable, match=r"is missing|is damaged"):  # a shard, of which zarrs asks the size
        open_volume(store).read()


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_metadata_that_is_no_file_is_refused(chunk, name, make):
    place = chunk[0] / name
    place.unlink()
    make(place)
    with pytest.raises(Unreadable, match="is a pipe, a socket or a device"):
        open_volume(chunk[0])


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.h5", "a.tfm", "a.mat", "a.csv", "a.npy", "a.ply"])
def test_a_file_of_any_format_that_is_none_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(Unreadable, match="is a pipe, a socket or a device"):
        daskreg.info(tmp_path / name)

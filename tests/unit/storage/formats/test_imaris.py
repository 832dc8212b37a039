"""Files as Imaris writes them: padded chunks, attributes of characters, edges of the image in place of voxel sizes."""

import shutil

import h5py
import numpy as np
import pytest

from daskreg.errors import ConfigError, NotFound, Unreadable
from daskreg.storage import open_stack, open_volume
from daskreg.storage.fs.address import parse_address
from daskreg.storage.images import open_record

VOXELS = np.random.default_rng(0).integers(0, 60000, (2, 2, 5, 30, 40)).astype(np.uint16)  # t, c, z, y, x


def characters(text):
    return np.array([c.encode() for c in text], "S1")


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.ims", "w") as file:
        image = file.create_group("DataSetInfo/Image").attrs
        for k, length in enumerate((20, 15, 10)):  # x, y, z
            image[f"ExtMin{k}"], image[f"ExtMax{k}"] = characters("10.0"), characters(str(10 + length))
        image["Unit"] = characters("um")
        for c, name in enumerate(("DAPI", "GFP")):
            channel = file.create_group(f"DataSetInfo/Channel {c}").attrs
            channel["Name"], channel["Color"] = characters(name), characters("0.000 0.502 1.000")
        times = file.create_group("DataSetInfo/TimeInfo").attrs
        for k in (1, 2):
            times[f"TimePoint{k}"] = characters(f"2020-01-01 10:0{k}:30.500")
        for level, step in enumerate((1, 2)):
            for t, c in np.ndindex(2, 2):
                voxels = VOXELS[t, c, :, ::step, ::step]
                group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}")
                for axis, n in zip("ZYX", voxels.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = characters(str(n))
                padded = np.zeros([-(-n // k) * k for n, k in zip(voxels.shape, (8, 16, 16), strict=True)], np.uint16)
                padded[tuple(slice(n) for n in voxels.shape)] = voxels
                group.create_dataset("Data", data=padded, chunks=(8, 16, 16), compression="gzip")
    return tmp_path / "a.ims"


def record(path, keys=""):
    return open_record(parse_address(f"{path}{keys}"))


@pytest.mark.parametrize(("word", "stated"), [("um", True), ("", False)])
def test_a_unit_that_is_not_stated_is_micrometers(path, word, stated):
    with h5py.File(path, "r+") as file:
        file["DataSetInfo/Image"].attrs["Unit"] = characters(word) if word else np.array([b""], "S1")
    found = record(path).grid_metadata
    assert (found.unit, found.unit_stated) == ("micrometer", stated)


@pytest.mark.parametrize(("keys", "step"), [("", 1), ("::level=1", 2)])
def test_voxels_without_their_padding_on_the_grid_of_the_level(path, keys, step):
    found = record(path, keys)
    np.testing.assert_array_equal(found.data.compute(), VOXELS[..., ::step, ::step])
    assert found.channels == ("DAPI", "GFP")
    assert found.grid_metadata.unit == "micrometer"
    assert found.grid_metadata.spacing == (2, 0.5 * step, 0.5 * step)
    assert found.grid_metadata.translation == (11, 10 + 0.25 * step, 10 + 0.25 * step)
    assert [level.shape for level in found.levels] == [(5, 30, 40), (5, 15, 20)]


def test_names_and_colours_of_channels_and_the_time_step_travel(path):
    time, channel = open_stack(path).lead
    assert (time.scale, time.unit) == (60.0, "second")
    assert [(c["label"], c["color"]) for c in channel.omero["channels"]] == [("DAPI", "0080FF"), ("GFP", "0080FF")]
    with h5py.File(path, "a") as file:
        file["DataSetInfo/Channel 0"].attrs["Color"] = characters("none")
        file["DataSetInfo/TimeInfo"].attrs["TimePoint2"] = characters("later")
    time, channel = open_stack(path).lead
    assert (time.scale, time.unit) == (1.0, None)
    assert channel.omero["channels"][1]["color"] == "FFFFFF"


def test_a_channel_and_a_time_are_an_image(path):
    volume = open_volume(f"{path}::channel=GFP,time=1")
    np.testing.assert_array_equal(volume.data[1:3, 4:20].compute(), VOXELS[1, 1, 1:3, 4:20])


def test_a_level_that_is_not_there_is_not_found(path):
    with pytest.raises(NotFound, match="no level 4; it has 0, 1"):
        record(path, "::level=4")
    with pytest.raises(ConfigError, match="has no arrays to choose"):
        record(path, "::array=DataSet")


@pytest.mark.parametrize(
    "place",
    ["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data", "DataSet/ResolutionLevel 0", "DataSet", "DataSetInfo/Image"],
)
def test_what_is_in_other_files_is_not_read(path, place):
    other = path.with_name("other.ims")
    shutil.copy(path, other)
    with h5py.File(path, "a") as file:
        del file[place]
        file[place] = h5py.ExternalLink("other.ims", f"/{place}")
    with pytest.raises(Unreadable, match="is a link to another file"):
        record(path)


def test_chunks_that_were_never_written_are_reported(path, caplog):
    with h5py.File(path, "a") as file:
        group = file["DataSet/ResolutionLevel 0/TimePoint 1/Channel 0"]
        del group["Data"]
        group.create_dataset("Data", (8, 32, 48), np.uint16, chunks=(8, 16, 16), compression="gzip")
    assert record(path).data[1, 0].compute().max() == 0
    assert "6 chunks were never written" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["DataSetInfo/Image"].attrs.__delitem__("ExtMax2"), "does not say where its edges are"),
        (lambda f: f["DataSetInfo/Image"].attrs.__setitem__("ExtMax2", characters("10")), "beyond the beginning"),
        (lambda f: f["DataSetInfo/Image"].attrs.__setitem__("Unit", characters("furlong")), "'furlong' is not a unit of length"),
        (lambda f: f.__delitem__("DataSet"), "none of Imaris"),
        (lambda f: f["DataSet"].__delitem__("ResolutionLevel 0/TimePoint 1/Channel 1/Data"), "no voxels at .*Channel 1"),
    ],
)
def test_what_is_missing_is_one_sentence(path, change, words):
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(Unreadable, match=words):
        record(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.ims").write_bytes(b"no HDF5 at all")
    with pytest.raises(Unreadable, match="no HDF5 file"):
        record(tmp_path / "a.ims")

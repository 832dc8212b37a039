"""TIFF as tifffile writes it for OME and ImageJ: voxels, axes and voxel sizes, and files that are not whole."""

import pickle

import numpy as np
import pytest

from daskreg.errors import AxesError, ConfigError, GridError, NotFound, Unreadable
from daskreg.lazy import blocks
from daskreg.storage import open_volume
from daskreg.storage.formats import tiff, tiff_details
from daskreg.storage.fs.address import parse_address
from daskreg.storage.images import open_record

tifffile = pytest.importorskip("tifffile")
VOXELS = np.random.default_rng(0).integers(0, 60000, (2, 3, 5, 16, 20)).astype(np.uint16)  # t, c, z, y, x
OME = {
    "axes": "TCZYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm",
    "PhysicalSizeZ": 2000, "PhysicalSizeZUnit": "nm", "TimeIncrement": 3.0, "Channel": {"Name": ["DAPI", "GFP", "RFP"],
                                                                                "Color": [65535, -16776961, 16711935]},
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(name, voxels=VOXELS, **given):
        tifffile.imwrite(tmp_path / name, voxels, **given)
        return tmp_path / name

    return write


def record(path, keys=""):
    return open_record(parse_address(f"{path}{keys}"))


def test_ome_states_axes_voxel_sizes_times_and_channels(written):
    found = record(written("a.ome.tif", metadata=OME))
    assert found.format == "OME-TIFF, uncompressed"
    assert [a.name for a in found.axes] == ["t", "c", "z", "y", "x"]
    assert (found.axes[0].scale, found.axes[0].unit) == (3.0, "second")
    assert found.channels == ("DAPI", "GFP", "RFP")
    assert found.colors == ("0000FF", "FF0000", "00FF00")
    assert found.grid_metadata.unit == "nanometer"
    np.testing.assert_allclose(found.grid_metadata.spacing, (2000, 250, 500))
    np.testing.assert_array_equal(found.data.compute(), VOXELS)


def test_a_channel_and_a_time_are_an_image(written):
    path = written("a.ome.tif", metadata=OME)
    volume = open_volume(f"{path}::channel=GFP,time=1")
    np.testing.assert_array_equal(volume.data.compute(), VOXELS[1, 1])
    np.testing.assert_allclose(volume.grid.spacing, (2000, 250, 500))


def test_imagej_states_planes_apart_and_its_own_unit(written):
    voxels = VOXELS.transpose(0, 2, 1, 3, 4)
    given = {"axes": "TZCYX", "spacing": 3.0, "unit": "um", "finterval": 1.5}
    found = record(written("a.tif", voxels, imagej=True, resolution=(4, 5), metadata=given))
    assert [a.name for a in found.axes] == ["t", "z", "c", "y", "x"]
    assert found.axes[0].scale == 1.5
    assert found.grid_metadata.unit == "micrometer"
    np.testing.assert_allclose(found.grid_metadata.spacing, (3, 0.2, 0.25))
    np.testing.assert_array_equal(found.data.compute(), voxels)


@pytest.mark.parametrize("given", [{}, {"byteorder": ">"}, {"tile": (16, 16), "compression": "zlib", "bigtiff": True}])
def test_a_stack_of_pages_has_no_voxel_size(written, given):
    found = record(written("a.tif", VOXELS[0, 0], **given))
    assert found.grid_metadata is None
    assert [a.name for a in found.axes] == ["z", "y", "x"]
    assert found.data.dtype == np.dtype(np.uint16)
    np.testing.assert_array_equal(found.data[1:4, 3:9, 2:11].compute(), VOXELS[0, 0, 1:4, 3:9, 2:11])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("a.ome.tif", {"metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}}),
        ("a.tif", {"imagej": True, "resolution": (2, 4), "metadata": {"axes": "ZYX", "unit": "um"}}),
    ],
)
def test_voxel_sizes_along_some_axes_are_told_of(written, name, given):
    path = written(name, VOXELS[0, 0], **given)
    says = "no voxel size along z, but 0.25 along y and 0.5 along x, in micrometer .*'::spacing=Zx0.25x0.5,unit=micrometer'"
    with pytest.raises(GridError, match=says):
        open_volume(path)
    assert open_volume(f"{path}::spacing=3x0.25x0.5,unit=micrometer").grid.spacing == (3, 0.25, 0.5)


def test_a_file_without_names_of_axes_says_how_to_name_them(written):
    path = written("a.tif", VOXELS[0])
    with pytest.raises(AxesError, match=r"3 channels: choose one with '::channel=0'; say with '::axes=czyx'"):
        open_volume(f"{path}::spacing=1")
    np.testing.assert_array_equal(open_volume(f"{path}::spacing=1,channel=2").read(), VOXELS[0, 2])
    named = open_volume(f"{path}::spacing=1,axes=zcyx,channel=1")
    np.testing.assert_array_equal(named.read(), VOXELS[0][:, 1])


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("QYX", "zyx"), ("IYX", "zyx"), ("QQYX", "czyx"), ("QQQYX", "tczyx"), ("QQQQQYX", "iqtczyx"), ("QZYX", "czyx"),
        ("QYXS", "zyxc"), ("QQYXS", "tzyxc"), ("TQYX", "tzyx"),
    ],
)  # fmt: skip
def test_axes_that_nothing_names_are_taken_by_their_place(names, taken):
    axes = tiff_details.TiffDetails("TIFF").axes(names)
    assert "".join(a.name for a in axes) == taken
    assert [a.stated for a in axes] == [n not in "QI" for n in names]


def test_pages_that_nothing_names_may_be_those_of_several_channels(written):
    path = written("a.tif", VOXELS[0, 0])
    with pytest.raises(GridError, match="If its 5 planes are those of several channels or times, write it anew"):
        open_volume(path)
    with pytest.raises(GridError, match=r"or with --spacing of register\.$"):
        open_volume(f"{path}::axes=zyx")


@pytest.mark.parametrize(
    ("axes", "voxels", "letters"), [("TYX", VOXELS[0, 0], "zyx"), ("TCYX", VOXELS[0].swapaxes(0, 1), "zcyx")]
)
def test_times_of_an_image_of_one_plane_may_be_its_planes(written, axes, voxels, letters):
    path = written("a.tif", voxels, imagej=True, metadata={"axes": axes})
    with pytest.raises(
        AxesError, match=f"choose one with '::time=0', or, if they are its planes, say so with '::axes={letters}'"
    ):
        open_volume(path)


def test_levels_below_a_page_are_coarser_images(written, tmp_path):
    path, fine = tmp_path / "a.ome.tif", VOXELS[0, 0]
    with tifffile.TiffWriter(path) as file:
        file.write(fine, subifds=1, metadata={"axes": "ZYX", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 3.0})
        file.write(fine[:, ::2, ::2], subfiletype=1)
    found = record(path, "::level=1")
    assert [(level.shape, level.spacing) for level in found.levels] == [((5, 16, 20), (3, 1, 1)), ((5, 8, 10), (3, 2, 2))]
    assert found.grid_metadata.translation == (0, 0.5, 0.5)
    np.testing.assert_array_equal(found.data.compute(), fine[:, ::2, ::2])
    with pytest.raises(NotFound, match="no level 2; it has 0, 1"):
        record(path, "::level=2")


def test_one_of_several_images_is_chosen(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        for k in range(2):
            file.write(VOXELS[0, k], metadata={"axes": "ZYX", "Name": f"round {k}"})
    with pytest.raises(Unreadable, match=r"holds 2 images; choose one with '::array=0' \(there are 0 \(round 0, 5x16x20\), 1"):
        record(path)
    for keys in ("::array=1", "::array=round 1"):
        np.testing.assert_array_equal(record(path, keys).data.compute(), VOXELS[0, 1])
    with pytest.raises(NotFound, match="no image '2'"):
        record(path, "::array=2")


def test_a_file_that_is_cut_short_is_refused(written):
    path = written("a.tif", VOXELS[0, 0])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Unreadable, match="cut short: it has 2000 bytes, and voxels up to byte"):
        record(path)


def test_pages_behind_the_end_are_not_left_out(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in VOXELS[0, 0]:
            file.write(plane, contiguous=False, metadata=None)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 5])
    with pytest.raises(Unreadable, match="cut short"):
        record(path)


def test_tiles_that_are_missing_are_reported(written):
    path = written("a.tif", np.zeros((5, 32, 32), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[1].tags["TileByteCounts"].overwrite([0, 0, 0, 0])
    with pytest.raises(Unreadable, match=r"4 strips or tiles are missing.*::missing=fill"):
        record(path)
    assert record(path, "::missing=fill").data.compute().shape == (5, 32, 32)


def test_a_file_that_was_replaced_is_not_read_as_the_old_one(written):
    found = record(written("a.tif", VOXELS[0, 0]))
    found.data.compute()
    written("a.tif", VOXELS[0, 1] // 2, compression="zlib")
    with pytest.raises(Unreadable, match="has changed since it was opened"):
        found.data.compute()


def test_workers_read_it_too(written):
    data = record(written("a.tif", VOXELS[0, 0])).data
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).compute(), VOXELS[0, 0])


def test_no_tiff_and_no_tifffile_are_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(Unreadable, match="without an image in it"):
        record(path)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ConfigError, match=r"needs tifffile, which is not installed; pip install 'daskreg\[tiff\]'"):
        record(path)


def test_an_unknown_unit_leaves_the_voxel_size_without_one(caplog):
    assert tiff_details._known_unit("a.tif", "\\u00B5m") == "micrometer"
    assert tiff_details._known_unit("a.tif", "reference frame") is None
    assert tiff_details._known_unit("a.tif", "furlong") is None
    assert "its unit 'furlong' is not known here" in caplog.text


LAYOUTS = [
    {},
    {"compression": "zlib", "rowsperstrip": 6},
    {"compression": "zlib", "rowsperstrip": 6, "predictor": True},
    {"compression": "zlib", "tile": (16, 16)},
    {"tile": (16, 32)},
    {"rowsperstrip": 5, "byteorder": ">"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_box_is_what_it_is_in_the_whole(written, layout):
    planes = np.random.default_rng(1).integers(0, 60000, (4, 37, 45)).astype(np.uint16)
    data = record(written("a.tif", planes, **layout, photometric="minisblack", metadata={"axes": "ZYX"})).data
    np.testing.assert_array_equal(data.compute(), planes)
    for box in np.s_[1:3, 5:20, 7:33], np.s_[3:, 30:, 40:], np.s_[0:1, 6:12, 16:32]:
        np.testing.assert_array_equal(data[box].compute(), planes[box])


def test_pixels_of_several_samples_are_boxes_too(written):
    planes = np.random.default_rng(1).integers(0, 255, (4, 37, 45, 3)).astype(np.uint8)
    data = record(written("a.tif", planes, compression="zlib", photometric="rgb", metadata={"axes": "ZYXS"})).data
    box = np.s_[1:3, 5:20, 7:33]
    np.testing.assert_array_equal(data[box].compute(), planes[box])


@pytest.mark.parametrize(("layout", "segments"), [(LAYOUTS[1], 7), (LAYOUTS[3], 9)], ids=str)
def test_blocks_of_an_image_decode_each_strip_once(written, monkeypatch, layout, segments):
    planes = np.random.default_rng(1).integers(0, 60000, (4, 37, 45)).astype(np.uint16)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 0)
    reader = blocks.Reader(record(written("a.tif", planes, **layout, photometric="minisblack", metadata={"axes": "ZYX"})).data)
    decode, found = tiff._Opened._decoded, []
    monkeypatch.setattr(tiff._Opened, "_decoded", lambda self, page, k: found.append((page.index, k)) or decode(self, page, k))
    for y in range(0, 37, 8):
        for x in range(0, 45, 8):
            box = np.s_[0:4, max(y - 1, 0) : y + 9, max(x - 1, 0) : x + 9]
            np.testing.assert_array_equal(reader[box], planes[box])
    assert len(found) == len(set(found)) == 4 * segments


def test_a_plane_alone_is_told_how_it_is_read(tmp_path):
    (tmp_path / "plane").mkdir()
    tifffile.imwrite(tmp_path / "plane" / "one.tif", np.ones((6, 7), np.uint8))
    with pytest.raises(AxesError, match="of a TIFF as the folder with that file alone"):
        open_volume(tmp_path / "plane" / "one.tif")
    assert open_volume(f"{tmp_path}/plane::spacing=1").shape == (1, 6, 7)

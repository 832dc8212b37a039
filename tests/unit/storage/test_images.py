"""Opening images of every format, and refusing what is none."""

import errno
import time

import dask.array as da
import numpy as np
import pytest
import zarr

from daskreg.errors import AxesError, ConfigError, GridError, NotFound, UnitsError, Unreadable
from daskreg.grid import Grid, Region
from daskreg.storage import open_stack, open_volume, write_image
from daskreg.storage.images import _warn_of_unit_spacing
from tests.unit.storage.stores import SHAPE, axes, dataset, ome_zarr, simple, voxels

LEVELS = [dataset("0", (2.0, 1.0, 0.5), (10.0, 20.0, 30.0)), dataset("s1", (4.0, 2.0, 1.0))]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_grid_of_ome_zarr_is_read(tmp_path, version):
    v = open_volume(simple(tmp_path / "a.zarr", version=version))
    assert v.grid == Grid((6, 7, 8), (2.0, 1.0, 0.5), (10.0, 20.0, 30.0), unit="um")
    assert not v.grid.oriented
    assert version in v.format
    read = v.read()
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, voxels())


@pytest.mark.parametrize("scheme", ["memory://{name}/a.zarr", "file://{path}/a.zarr"])
def test_urls_are_read_like_paths(tmp_path, scheme):
    url = scheme.format(name=tmp_path.name, path=tmp_path)
    simple(url if url.startswith("memory") else tmp_path / "a.zarr")
    np.testing.assert_array_equal(open_volume(url).read(), voxels())
    np.testing.assert_array_equal(open_volume(url + "/0").read(), voxels())


def test_a_region_is_read_as_in_the_whole(tmp_path):
    v = open_volume(simple(tmp_path / "a.zarr"))
    r = Region((1, 2, 3), (5, 7, 4))
    np.testing.assert_array_equal(v.read(r), voxels()[r.slices])
    with pytest.raises(ValueError, match="outside"):
        v.read(Region((0, 0, 0), (7, 7, 8)))


def test_shards_are_the_dask_chunks(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels((16, 16, 16))], [dataset("0", (1, 1, 1))], chunks=(4, 4, 4), shards=(8, 8, 16))
    v = open_volume(path)
    assert v.data.chunksize == (8, 8, 16)
    np.testing.assert_array_equal(v.read(), voxels((16, 16, 16)))


@pytest.mark.parametrize("address", ["::level=1", "::level=s1", "/s1"])
def test_a_level_is_chosen_by_number_name_or_path(tmp_path, address, caplog):
    path = ome_zarr(tmp_path / "a.zarr", [voxels(), voxels((3, 4, 4))], LEVELS)
    v = open_volume(path + address)
    assert v.grid == Grid((3, 4, 4), (4.0, 2.0, 1.0), (11.0, 20.5, 30.25), unit="um")
    assert "states no translation" in caplog.text
    assert [level.path for level in v.levels] == ["0", "s1"]


def test_transformations_of_datasets_and_of_the_multiscale_are_composed(tmp_path):
    outer = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [1, 1, 1]}]
    v = open_volume(simple(tmp_path / "a.zarr", outer=outer))
    assert v.grid.spacing == (4.0, 2.0, 1.0)
    assert v.grid.origin == (21.0, 41.0, 61.0)


def test_axes_are_transposed_to_z_y_x(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels()], [dataset("0", (2.0, 1.0, 0.5), (1, 2, 3))], axis_list=axes("xzy"))
    v = open_volume(path)
    assert v.grid == Grid((7, 8, 6), (1.0, 0.5, 2.0), (2.0, 3.0, 1.0), unit="um")
    np.testing.assert_array_equal(v.read(), voxels().transpose(1, 2, 0))


def oriented(words, key="orientation"):
    named = [{"type": "anatomical", "value": w} for w in words] if key == "orientation" else words
    return [a | {key: w} for a, w in zip(axes(), named)]


@pytest.mark.parametrize("key", ["orientation", "anatomicalOrientation"])
def test_anatomical_orientations_set_the_direction(tmp_path, key):
    words = ["superior-to-inferior", "anterior-to-posterior", "left-to-right"]
    g = open_volume(simple(tmp_path / "a.zarr", axis_list=oriented(words, key))).grid
    assert g.oriented
    assert g.direction == ((-1, 0, 0), (0, 1, 0), (0, 0, -1))
    np.testing.assert_allclose(g.origin, (-10, 20, -30))


def test_two_axes_cannot_have_one_orientation(tmp_path):
    path = simple(tmp_path / "a.zarr", axis_list=oriented(["left-to-right", "right-to-left", "inferior-to-superior"]))
    with pytest.raises(GridError, match="same orientation"):
        open_volume(path)


def test_unknown_orientations_are_ignored_with_a_warning(tmp_path, caplog):
    path = simple(tmp_path / "a.zarr", axis_list=oriented(["dorsal-to-ventral", "left-to-right", "up"]))
    assert not open_volume(path).grid.oriented
    assert "ignored" in caplog.text


def test_missing_units_are_no_unit_and_mixed_ones_become_one(tmp_path):
    bare = [{"name": n, "type": "space"} for n in "zyx"]
    assert open_volume(simple(tmp_path / "a.zarr", axis_list=bare)).grid.unit is None
    mixed = axes()
    mixed[0]["unit"] = "nanometer"
    g = open_volume(simple(tmp_path / "b.zarr", axis_list=mixed)).grid
    assert g.to_unit("um").spacing == pytest.approx((2e-3, 1.0, 0.5))


def test_unknown_units_are_refused_unless_a_unit_is_given(tmp_path):
    path = simple(tmp_path / "a.zarr", axis_list=axes(unit="parsec"))
    with pytest.raises(UnitsError, match="parsec"):
        open_volume(path)
    assert open_volume(path + "::unit=mm").grid.unit == "millimeter"


def channels(path, labels=("DAPI", "GFP")):
    data = voxels((2, 6, 7, 8))
    omero = {"channels": [{"label": n, "color": "FF0000", "window": {"min": 0, "max": 1, "start": 0, "end": 1}} for n in labels]}
    return ome_zarr(path, [data], [dataset("0", (1, 2, 1, 1))], axis_list=axes("czyx"), omero=omero), data


def test_a_channel_must_be_chosen_and_the_error_says_how(tmp_path):
    path, data = channels(tmp_path / "a.zarr")
    with pytest.raises(AxesError, match=r"has 2 channels \(DAPI, GFP\): choose one with '::channel=DAPI'"):
        open_volume(path)
    np.testing.assert_array_equal(open_volume(path + "::channel=GFP").read(), data[1])
    np.testing.assert_array_equal(open_volume(path + "::channel=0").read(), data[0])
    with pytest.raises(NotFound, match="has no channel 'RFP'"):
        open_volume(path + "::channel=RFP")
    with pytest.raises(NotFound, match="has no channel 2"):
        open_volume(path + "::channel=2")


@pytest.mark.parametrize("name", ["a,b", "7", ""])
def test_a_channel_whose_name_cannot_be_written_is_named_by_its_number(tmp_path, name):
    path, _ = channels(tmp_path / "a.zarr", (name, "GFP"))
    with pytest.raises(AxesError, match="choose one with '::channel=0'"):
        open_volume(path)


@pytest.mark.parametrize("ending", ["zarr", "nii.gz"])
@pytest.mark.parametrize(("kind", "asked"), [("channel", "1"), ("channel", "GFP"), ("time", "7")])
def test_a_channel_or_time_of_an_image_without_such_an_axis_is_refused(tmp_path, ending, kind, asked):
    path = tmp_path / f"a.{ending}"
    write_image(path, voxels(), Grid(SHAPE, unit="mm"))
    says = f"has no {kind} '?{asked}'?: it has no {kind} axis, its axes are z, y, x; leave '::{kind}=' out"
    for read in (open_volume, open_stack):
        with pytest.raises(NotFound, match=says):
            read(f"{path}::{kind}={asked}")
        assert read(f"{path}::time=0,channel=0").grid.shape == SHAPE


def test_a_time_is_refused_where_there_are_channels_only(tmp_path):
    path, _ = channels(tmp_path / "a.zarr")
    with pytest.raises(NotFound, match="has no time 4: it has no time axis, its axes are c, z, y, x"):
        open_volume(f"{path}::channel=GFP,time=4")


def test_single_times_and_channels_are_squeezed_and_several_times_chosen(tmp_path):
    one = ome_zarr(tmp_path / "a.zarr", [voxels((1, 1, 6, 7, 8))], [dataset("0", (1, 1, 2, 1, 1))], axis_list=axes("tczyx"))
    assert open_volume(one).shape == (6, 7, 8)
    two = ome_zarr(tmp_path / "b.zarr", [voxels((3, 1, 6, 7, 8))], [dataset("0", (1, 1, 2, 1, 1))], axis_list=axes("tczyx"))
    with pytest.raises(AxesError, match=r"3 time points.*::time=0"):
        open_volume(two)
    np.testing.assert_array_equal(open_volume(two + "::time=2").read(), voxels((3, 1, 6, 7, 8))[2, 0])


def test_two_dimensional_images_are_refused(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels((6, 7))], [dataset("0", (1, 1))], axis_list=axes("yx"))
    with pytest.raises(AxesError, match="3D image"):
        open_volume(path)
    with pytest.raises(AxesError, match="three axes"):
        open_volume(np.zeros((6, 7)))


@pytest.mark.parametrize("form", [2, 3])
def test_a_bare_array_needs_a_voxel_size(tmp_path, form):
    path = str(tmp_path / "a.zarr")
    zarr.create_array(path, data=voxels(), chunks=(4, 4, 4), zarr_format=form)
    with pytest.raises(GridError, match="--spacing"):
        open_volume(path)
    assert open_volume(path + "::spacing=2x1x1,unit=um").grid == Grid((6, 7, 8), (2, 1, 1), unit="um")
    assert open_volume(path, spacing=3, unit="mm").grid == Grid((6, 7, 8), (3, 3, 3), unit="mm")
    given = Grid((6, 7, 8), (1, 2, 3), (4, 5, 6))
    v = open_volume(path, grid=given)
    assert v.grid == given
    np.testing.assert_array_equal(v.read(), voxels())
    with pytest.raises(GridError, match="must be the same"):
        open_volume(path, grid=Grid((6, 7, 9)))


def test_named_dimensions_of_a_bare_array_are_used(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=voxels(), dimension_names=("x", "y", "z"))
    v = open_volume(tmp_path / "a.zarr", spacing=1)
    np.testing.assert_array_equal(v.read(), voxels().T)


def test_given_spacing_rescales_about_the_origin(tmp_path):
    g = open_volume(simple(tmp_path / "a.zarr") + "::spacing=4x2x1").grid
    assert g.spacing == (4.0, 2.0, 1.0)
    assert g.origin == (20.0, 40.0, 60.0)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float32", "float64", ">i2"])
def test_every_real_type_is_read_as_float32(tmp_path, dtype):
    data = (voxels() % 2).astype(dtype)
    zarr.create_array(str(tmp_path / "a.zarr"), data=data)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr", spacing=1).read(), data.astype(np.float32))


def test_complex_voxels_are_refused(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=voxels().astype("complex64"))
    with pytest.raises(Unreadable, match="complex64"):
        open_volume(tmp_path / "a.zarr", spacing=1)


def test_arrays_have_a_unit_grid_by_default():
    for data in (voxels(), da.from_array(voxels(), chunks=3)):
        v = open_volume(data)
        assert v.grid == Grid((6, 7, 8))
        np.testing.assert_array_equal(v.read(), voxels())
        assert open_volume(v, spacing=2, unit="mm").grid == Grid((6, 7, 8), (2, 2, 2), unit="mm")
    with pytest.raises(ConfigError, match="list"):
        open_volume([1, 2])


def test_a_missing_path_is_refused_at_once_with_the_most_similar_name(tmp_path, monkeypatch):
    simple(tmp_path / "fixed.zarr")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("a retry"))
    with pytest.raises(NotFound, match=r"the nearest name there is .*fixed.zarr"):
        open_volume(tmp_path / "fixd.zarr")
    with pytest.raises(NotFound, match=r"other.zarr does not exist\.$"):  # what the names have in common is their ending
        open_volume(tmp_path / "other.zarr")
    (tmp_path / "gone.zarr").symlink_to("elsewhere.zarr")
    with pytest.raises(NotFound, match=r"is a link to elsewhere.zarr, which does not exist"):
        open_volume(tmp_path / "gone.zarr")
    with pytest.raises(NotFound, match="neither does the folder"):
        open_volume(tmp_path / "none" / "a.nii.gz")
    with pytest.raises(NotFound):
        open_volume("memory://nothing/here.zarr")


@pytest.mark.parametrize("address", ["::level=7", "::level=s9", "::array=9"])
def test_levels_and_arrays_that_are_not_there_are_not_found(tmp_path, address):
    with pytest.raises(NotFound):
        open_volume(simple(tmp_path / "a.zarr") + address)


def test_a_level_of_a_single_array_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no levels"):
        open_volume(simple(tmp_path / "a.zarr") + "/0::level=1")


def test_a_missing_level_is_named(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels()], LEVELS)
    with pytest.raises(NotFound, match="s1"):
        open_volume(path)


def test_groups_without_an_image_say_what_is_inside(tmp_path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    with pytest.raises(Unreadable, match="without an image"):
        open_volume(tmp_path / "g.zarr")
    group.create_array("em", data=voxels())
    with pytest.raises(Unreadable, match="::array=em"):
        open_volume(tmp_path / "g.zarr")
    assert open_volume(f"{tmp_path}/g.zarr::array=em,spacing=1").shape == (6, 7, 8)
    simple(tmp_path / "g.zarr" / "image")
    with pytest.raises(Unreadable, match="::array=image"):
        open_volume(tmp_path / "g.zarr")


def test_what_is_no_zarr_is_unreadable(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "round2" / "GFP").mkdir(parents=True)
    (tmp_path / "round2" / "DAPI").mkdir()
    (tmp_path / "a.abc").write_bytes(b"ZISRAWFILE")
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_')
    inside = r"was expected; it has DAPI, GFP: name one of them, as .*round2/DAPI\.$"
    for name, says in (
        ("folder", r"without Zarr metadata .*was expected\.$"),
        ("round2", inside),
        ("a.abc", "no known image format"),
        ("b.zarr", "cannot be read"),
    ):
        with pytest.raises(Unreadable, match=says):
            open_volume(tmp_path / name)


def test_a_forbidden_store_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = simple(tmp_path / "a.zarr")
    monkeypatch.setattr("zarr.open", refuse)
    with pytest.raises(Unreadable, match=r"Permission denied.*ask its owner"):
        open_volume(path)


def test_a_url_scheme_nobody_serves_says_so():
    with pytest.raises(Unreadable, match="nosuch"):
        open_volume("nosuch://bucket/a.zarr")


def test_invalid_levels_are_named_before_their_number(tmp_path):
    path = simple(tmp_path / "a.zarr")
    group = zarr.open_group(path)
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"] = [{"path": "0", "coordinateTransformations": [{"type": "rotation"}]}]
    group.attrs["ome"] = {**ome, "version": "0.5"}
    with pytest.raises(Unreadable, match=r"datasets\[0\].coordinateTransformations.*'rotation'"):
        open_volume(path)


def test_an_array_without_a_voxel_size_is_told_once(caplog):
    _warn_of_unit_spacing.cache_clear()
    for _ in range(2):
        assert open_volume(voxels()).grid.spacing == (1, 1, 1)
    assert caplog.text.count("no voxel size") == 1
    _warn_of_unit_spacing.cache_clear()
    caplog.clear()
    open_volume(voxels(), spacing=2)
    open_volume(voxels(), grid=Grid(SHAPE))
    assert not caplog.text


@pytest.mark.parametrize("version", ["0.0", "0.7"])
def test_other_versions_of_ome_zarr_are_refused(tmp_path, version):
    path = simple(tmp_path / "a.zarr")
    group = zarr.open_group(path)
    group.attrs["ome"] = {**group.attrs["ome"], "version": version}
    with pytest.raises(Unreadable, match=rf"OME-Zarr '{version}'; the strings '0.1' to '0.6'"):
        open_volume(path)


@pytest.mark.parametrize(
    "broken",
    [
        {"axes": axes()},
        {"axes": axes(), "datasets": []},
        {"axes": axes("zy"), "datasets": [dataset("0", (1, 1, 1))]},
        {"axes": "zyx", "datasets": [dataset("0", (1, 1, 1))]},
        {"axes": axes(), "datasets": [{"path": "0", "coordinateTransformations": [{"type": "rotation"}]}]},
        {"axes": axes(), "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "path": "s"}]}]},
    ],
)
def test_invalid_metadata_is_unreadable(tmp_path, broken):
    path = simple(tmp_path / "a.zarr")
    zarr.open_group(path).attrs["ome"] = {"version": "0.5", "multiscales": [broken]}
    with pytest.raises(Unreadable):
        open_volume(path)


@pytest.mark.parametrize("scale", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0)])
def test_a_voxel_size_that_is_not_positive_is_a_grid_error(tmp_path, scale):
    path = ome_zarr(tmp_path / "a.zarr", [voxels()], [dataset("0", scale)])
    with pytest.raises(GridError, match="positive"):
        open_volume(path)
    assert open_volume(path + "::spacing=1").grid.spacing == (1, 1, 1)


@pytest.mark.parametrize("damage", [b"", b"not a blosc or zstd frame"])
def test_a_damaged_chunk_is_named(tmp_path, damage):
    v = open_volume(simple(tmp_path / "a.zarr"))
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "1").write_bytes(damage)
    with pytest.raises(Unreadable, match=r"a\.zarr: the chunk at 4:6 0:4 4:8 is damaged"):
        v.read()


def test_a_missing_chunk_is_the_fill_value_only_where_the_address_says_so(tmp_path):
    path = simple(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    assert open_volume(f"{path}::missing=fill").read()[5, 6, 7] == 0
    with pytest.raises(Unreadable, match=r"the chunk c/1/1/1 is missing, and 1 of 8 chunks are"):
        open_volume(path).read()


def test_reading_a_region_decodes_only_its_chunks(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", [voxels((16, 16, 16))], [dataset("0", (1, 1, 1))])
    v = open_volume(path)
    (tmp_path / "a.zarr" / "0" / "c" / "3" / "3" / "3").write_bytes(b"damaged")
    np.testing.assert_array_equal(v.read(Region((0, 0, 0), (12, 16, 16))), voxels((16, 16, 16))[:12])


def test_a_volume_is_an_array_of_its_voxels_for_numpy():
    """In their own type, and not an array that holds the Volume."""
    voxels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    volume = open_volume(voxels, spacing=1)
    np.testing.assert_array_equal(np.asarray(volume), voxels)
    assert np.asarray(volume).dtype == np.uint16
    assert np.array(volume, float).dtype == float
    with pytest.raises(ValueError, match="a copy"):
        np.array(volume, copy=False)

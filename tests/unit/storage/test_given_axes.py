"""Axes that an address names, in files of each format that says nothing of them or something wrong."""

import h5py
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.errors import AxesError, ConfigError, NotFound
from daskreg.grid import Grid
from daskreg.storage import describe, open_volume, write_image
from daskreg.storage.registry import identify
from tests.unit.storage import n5
from tests.unit.storage.stores import dataset, ome_zarr, voxels

tifffile = pytest.importorskip("tifffile")
SHAPE = voxels().shape


def npy(path, array):
    np.save(path / "a.npy", array)
    return path / "a.npy"


def tiff(path, array):
    tifffile.imwrite(path / "a.tif", array, photometric="minisblack")
    return path / "a.tif"


def hdf5(path, array):
    with h5py.File(path / "a.h5", "w") as file:
        file["raw"] = array
    return path / "a.h5"


def plain_zarr(path, array):
    zarr.save(str(path / "a.zarr"), array)
    return f"{path / 'a.zarr'}::missing=fill"


def blocks(path, array):
    n5.write(path / "a.n5" / "raw", array, block=(4,) * array.ndim)
    return path / "a.n5"


WRITERS = npy, tiff, hdf5, plain_zarr, blocks


def with_axes(path, axes, more="spacing=2x1x0.5"):
    return f"{path}{',' if '::' in str(path) else '::'}axes={axes},{more}"


@pytest.mark.parametrize("write", WRITERS)
def test_an_array_is_read_along_the_axes_that_are_named(tmp_path, write):
    volume = open_volume(with_axes(write(tmp_path, np.ascontiguousarray(voxels().transpose(2, 1, 0))), "xyz"))
    np.testing.assert_array_equal(volume.data, voxels())
    np.testing.assert_array_equal(volume.read(), voxels())
    assert volume.grid.spacing == (2, 1, 0.5)  # z, y, x, whatever the axes are


@pytest.mark.parametrize("write", WRITERS)
def test_channels_may_be_anywhere(tmp_path, write):
    path = write(tmp_path, np.ascontiguousarray(np.stack([voxels(), voxels() + 1], -1)))
    np.testing.assert_array_equal(open_volume(with_axes(path, "ZYXC", "channel=1,spacing=1")).data, voxels() + 1)
    found = describe(with_axes(path, "zyxc", "spacing=1"))
    assert f"{' x '.join(map(str, SHAPE))} x 2  (z, y, x, c; as given)" in found.lines()[2]
    assert "2 channels: choose one with '::channel=0'" in found.hint


@pytest.mark.parametrize(("axes", "says"), [
    ("zyxx", "'x' is there 2 times"), ("zy", "x is not in it"), ("c", "z and y and x are not in it"), ("zyw", "'w' is no axis"),
    ("", "has no value"), ("z,y,x", "write axes=zyx"), ("5", "'5' is no axis"),
])  # fmt: skip
def test_letters_that_name_no_axes_are_refused(tmp_path, axes, says):
    with pytest.raises(ConfigError, match=says):
        open_volume(f"{npy(tmp_path, voxels())}::axes={axes}")


def test_another_number_of_axes_is_refused(tmp_path):
    with pytest.raises(AxesError, match=r"axes=czyx names 4 axes; the array has 3, 6 x 7 x 8"):
        open_volume(with_axes(npy(tmp_path, voxels()), "czyx"))


def test_voxel_sizes_stay_with_the_axes_that_they_are_stated_for(tmp_path):
    path = hdf5(tmp_path, voxels())
    with h5py.File(path, "a") as file:
        file["raw"].attrs["element_size_um"] = (3.0, 2.0, 1.0)
    assert open_volume(f"{path}::axes=xyz").grid.spacing == (1, 2, 3)
    assert open_volume(f"{path}::axes=zxy").grid.spacing == (3, 1, 2)
    levels = [dataset("0", (4, 2, 1)), dataset("1", (8, 4, 2))]
    ome_zarr(tmp_path / "b.zarr", [voxels(), voxels((3, 4, 4))], levels)
    coarse = open_volume(f"{tmp_path / 'b.zarr'}::axes=xyz,level=1")
    assert (coarse.grid.spacing, coarse.shape) == ((2, 4, 8), (4, 4, 3))
    assert [(v.shape, v.spacing) for v in coarse.levels] == [((8, 7, 6), (1, 2, 4)), ((4, 4, 3), (2, 4, 8))]
    np.testing.assert_array_equal(coarse.read(), voxels((3, 4, 4)).T)  # which reads the store directly


def test_sizes_of_axes_that_nothing_names_belong_to_the_spatial_ones_in_their_order(tmp_path):
    n5.write(tmp_path / "a.n5" / "raw", np.stack([voxels()] * 2, -1), block=(4, 4, 4, 2), resolution=[1, 2, 3])
    assert open_volume(f"{tmp_path / 'a.n5'}::axes=zyxc,channel=0").grid.spacing == (3, 2, 1)


def test_frames_that_are_planes_take_the_distance_that_the_file_states(tmp_path):
    given = {"metadata": {"axes": "TYX", "spacing": 2, "unit": "um"}, "resolution": (1, 2), "imagej": True}
    tifffile.imwrite(tmp_path / "t.tif", voxels(), **given)
    with pytest.raises(AxesError, match="6 time points"):
        open_volume(tmp_path / "t.tif")
    volume = open_volume(f"{tmp_path / 't.tif'}::axes=zyx")
    assert (volume.grid.spacing, volume.grid.unit) == ((2, 0.5, 1), "micrometer")


def test_samples_of_a_pixel_are_channels(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([voxels().astype(np.uint8)] * 3, -1), photometric="rgb")
    np.testing.assert_array_equal(
        open_volume(f"{tmp_path / 'rgb.tif'}::axes=zyxs,channel=2,spacing=1").data, voxels().astype(np.uint8)
    )


def test_other_names_than_directions_allow_are_refused(tmp_path):
    write_image(tmp_path / "a.nii.gz", voxels(), Grid(SHAPE, unit="millimeter"))
    assert open_volume(f"{tmp_path / 'a.nii.gz'}::axes=zyx").grid == open_volume(tmp_path / "a.nii.gz").grid
    with pytest.raises(AxesError, match="says by directions how its axes lie in space"):
        open_volume(f"{tmp_path / 'a.nii.gz'}::axes=xyz")


def test_errors_about_axes_say_how_to_name_them(tmp_path):
    path = tiff(tmp_path, np.stack([voxels()] * 2))
    for address in (path, f"{npy(tmp_path, np.stack([voxels()] * 2))}"):
        with pytest.raises(AxesError, match=r"say with '::axes=czyx' or the like what the axes are \(2x6x7x8\)"):
            open_volume(address)
    with pytest.raises(NotFound, match="leave '::channel=' out, or say with '::axes=zyx'"):
        open_volume(f"{npy(tmp_path, voxels())}::channel=1")
    assert "not stated: taken as z y x; '::axes=' names others" in describe(npy(tmp_path, voxels())).lines()[2]


def test_python_takes_them_too(tmp_path):
    path, array = npy(tmp_path, voxels().T), voxels().T
    for source in (path, array, f"{path}::axes=zyx"):
        volume = open_volume(source, axes="xyz", spacing=(2, 1, 0.5))
        np.testing.assert_array_equal(volume.data, voxels())
        assert volume.grid.spacing == (2, 1, 0.5)
    assert open_volume(path, axes=("X", "Y", "Z"), spacing=1).name == f"{path}::axes=xyz"  # by which it is opened again
    np.testing.assert_array_equal(open_volume(array[None], axes="cxyz", spacing=1).data, voxels())
    with pytest.raises(AxesError, match="2 channels; index it first"):
        open_volume(np.stack([array] * 2), axes="cxyz")
    with pytest.raises(AxesError, match=r"name its axes, as in daskreg\.open_volume"):
        open_volume(array[None])
    with pytest.raises(ConfigError, match="is a Volume, whose axes are z, y, x"):
        open_volume(volume, axes="xyz")
    with pytest.raises(ConfigError, match="axes 3: a letter for each"):
        open_volume(array, axes=3)


def test_images_and_points_of_numpy_are_told_apart(tmp_path):
    np.save(tmp_path / "p.npy", np.ones((4, 3)))
    assert identify(str(tmp_path / "p.npy")).name == "NumPy array of points"
    assert identify(str(npy(tmp_path, voxels()))).name == "NumPy array"
    done = CliRunner().invoke(app, ["info", f"{tmp_path / 'a.npy'}::level=1"])
    assert "a .npy file has one array, without levels" in str(done.exception)

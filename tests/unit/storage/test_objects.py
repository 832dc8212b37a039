"""Images of other libraries are read with their geometry, without importing what is not there."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import daskreg
from daskreg.errors import AxesError, ConfigError, GridError, UnitsError
from daskreg.grid import Grid
from daskreg.storage import open_stack, open_volume, write_image
from daskreg.storage.digest import digest
from daskreg.storage.objects import address_of_object
from daskreg.workflows.inputs import Request
from daskreg.workflows.masks import open_mask
from tests.unit.storage.stores import SHAPE, simple, voxels

TURN = ((1.0, 0.0, 0.0), (0.0, 0.8, -0.6), (0.0, 0.6, 0.8))
GRID = Grid(SHAPE, (2.0, 1.0, 0.5), (5.0, 6.0, 7.0), TURN, "millimeter", True)


@pytest.fixture
def files(tmp_path):
    for ending in ("mha", "nii.gz"):
        write_image(tmp_path / f"a.{ending}", voxels(), GRID)
    return tmp_path


def same(volume, other):
    np.testing.assert_array_equal(volume.read(), other.read())
    np.testing.assert_allclose(volume.grid.index_to_world, other.grid.index_to_world, atol=1e-5)
    return (volume.grid.unit, volume.grid.oriented) == (other.grid.unit, other.grid.oriented)


def test_images_of_simpleitk_and_nibabel_are_those_of_their_files(files):
    assert same(open_volume(sitk.ReadImage(files / "a.mha")), open_volume(files / "a.mha"))
    assert same(open_volume(nib.load(files / "a.nii.gz")), open_volume(files / "a.nii.gz"))
    turned = nib.Nifti1Image(np.asarray(nib.load(files / "a.nii.gz").dataobj), np.diag([3, 2, 1, 1]))  # and no file
    assert open_volume(turned).grid.spacing == (1, 2, 3)


def test_components_and_times_of_an_image_are_axes(tmp_path):
    vectors = sitk.GetImageFromArray(np.stack([voxels(), voxels() + 1], -1), isVector=True)
    assert open_stack(vectors).axes == ("c",)
    np.testing.assert_array_equal(open_stack(vectors).data[1], voxels() + 1)
    frames = nib.Nifti1Image(np.stack([voxels().T.astype(np.int16)] * 3, -1), np.eye(4))
    frames.header.set_xyzt_units("mm", "sec")
    frames.header["pixdim"][4] = 2.5
    (time,) = open_stack(frames).lead
    assert (time.kind, time.unit, time.scale) == ("time", "second", 2.5)
    with pytest.raises(AxesError, match="3 time points; index it first"):
        open_volume(frames)
    write_image(tmp_path / "a.nii", voxels().astype(np.int16), open_volume(frames.slicer[..., 0]).grid)
    daskreg.apply(daskreg.Transform.of(unit="mm"), frames, tmp_path / "b.nii", like=tmp_path / "a.nii")
    assert nib.load(tmp_path / "b.nii").header.get_zooms()[3] == 2.5


def test_a_stored_zarr_array_or_group_is_its_address(tmp_path):
    path = simple(tmp_path / "a.zarr")
    group = zarr.open(path, mode="r")
    for node in (group, group["0"]):
        volume = open_volume(node)
        assert volume.grid.spacing == (2.0, 1.0, 0.5)
        assert digest(node) == digest(volume.name)
        assert Request(fixed=node).recipe()["fixed"] == volume.name
    memory = zarr.array(voxels())
    assert address_of_object(memory) is None
    assert open_volume(memory, spacing=2).grid.spacing == (2, 2, 2)
    np.testing.assert_array_equal(open_volume(memory).read(), voxels())
    assert Request(fixed=memory).recipe()["arrays"] == ["fixed"]


class DataArray:
    """What is used of xarray's, which need not be installed."""

    __module__ = "xarray.core.dataarray"

    def __init__(self, data, dims, coords, name=None):
        self.data, self.dims, self.name = data, tuple(dims), name
        self.shape, self.ndim, self.dtype = data.shape, data.ndim, data.dtype
        self.coords = {k: Coordinate(*v) for k, v in coords.items()}


class Coordinate:
    def __init__(self, values, unit=None):
        self.values, self.attrs = np.asarray(values), {} if unit is None else {"units": unit}


def places(z=2.0, unit="um"):
    return {n: (5 + np.arange(k) * s, unit) for n, k, s in zip("zyx", SHAPE, (z, 1.0, -0.5))}


def test_coordinates_of_xarray_are_the_grid():
    volume = open_volume(DataArray(voxels(), "zyx", places()))
    assert (volume.grid.spacing, volume.grid.origin, volume.grid.unit) == ((2, 1, 0.5), (5, 5, 5), "micrometer")
    assert volume.grid.direction == ((1, 0, 0), (0, 1, 0), (0, 0, -1))
    np.testing.assert_array_equal(volume.read(), voxels())
    turned = open_volume(DataArray(voxels().transpose(2, 0, 1), "xzy", places()))
    assert turned.grid == volume.grid
    several = np.stack([np.stack([voxels()] * 2)] * 3)
    coords = places() | {"t": ([0.0, 30.0, 60.0], "second"), "c": (["DAPI", "GFP"],)}
    time, channel = open_stack(DataArray(several, "tczyx", coords)).lead
    assert (time.scale, time.unit) == (30.0, "second")
    assert [c["label"] for c in channel.omero["channels"]] == ["DAPI", "GFP"]
    assert open_volume(DataArray(voxels(), "zyx", {}), spacing=3).grid.spacing == (3, 3, 3)


@pytest.mark.parametrize(
    ("dims", "reported"), [(("depth", "y", "x"), True), (("dim_0", "dim_1", "dim_2"), False), ("zyx", False)]
)
def test_dimensions_that_are_taken_as_others_are_reported(caplog, dims, reported):
    assert open_volume(DataArray(voxels(), dims, {}), spacing=3).shape == SHAPE
    assert ("its dimensions depth, y, x are taken as z, y, x" in caplog.text) == reported
    assert len(caplog.messages) == reported


def test_a_data_array_without_a_unit_beside_one_with_a_unit_is_told_where_it_is_given():
    grids = [open_volume(DataArray(voxels(), "zyx", places(unit=unit))).grid for unit in ("um", None)]
    with pytest.raises(UnitsError, match=r"of an xarray.DataArray: the attribute units of its coordinates"):
        grids[1].to_unit(grids[0].unit)


def test_coordinates_that_are_no_grid_are_refused():
    uneven = places() | {"z": ([0, 1, 2, 3, 4, 9], "um")}
    with pytest.raises(GridError, match="along z are not at even steps"):
        open_volume(DataArray(voxels(), "zyx", uneven))
    with pytest.raises(GridError, match="no coordinates along z"):
        open_volume(DataArray(voxels(), "zyx", {k: v for k, v in places().items() if k != "z"}))
    with pytest.raises(UnitsError, match="one unit"):
        open_volume(DataArray(voxels(), "zyx", places() | {"z": (np.arange(6.0), "mm")}))


def test_what_is_no_image_is_refused_and_says_what_is_taken():
    for source in (3, {}, object()):
        with pytest.raises(ConfigError, match="cannot be read; give an address, a NumPy, Dask or Zarr array"):
            open_volume(source)


def test_a_mask_with_a_geometry_keeps_it_and_one_without_has_that_of_its_image(files):
    image = open_volume(files / "a.mha")
    assert open_mask(sitk.ReadImage(files / "a.mha"), image, "fixed").grid == image.grid
    assert open_mask(zarr.array(voxels()), image, "fixed").grid == image.grid
    shifted = sitk.ReadImage(files / "a.mha")
    shifted.SetOrigin([v + 1 for v in shifted.GetOrigin()])
    assert open_mask(shifted, image, "fixed").format == "resampled"


def test_a_transform_is_applied_to_an_object_where_it_lies(files):
    image = sitk.ReadImage(files / "a.mha")
    moved = daskreg.Transform.of(unit="mm").apply(image, like=image)
    np.testing.assert_array_equal(moved, voxels())
    assert daskreg.plan(image, sitk.ReadImage(files / "a.mha"), "rigid").fixed.spacing == GRID.spacing

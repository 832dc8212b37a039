"""NIfTI in and out, with SimpleITK as the second opinion on where voxels are."""

import gzip

import dask.array as da
import fsspec
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.errors import AxesError, ConfigError, NotFound, Unreadable
from daskreg.grid import Grid, Region
from daskreg.storage import describe, open_volume, write_image

LIA = np.array([[-1.5, 0, 0, 90], [0, 0, 2.0, -80], [0, -1.2, 0, 70], [0, 0, 0, 1.0]])
TILTED = np.array([[0.8, -0.6, 0, 9], [0.6, 0.8, 0, -8], [0, 0, 2.0, 7], [0, 0, 0, 1.0]])
DATA = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.int16)  # i, j, k


def save(path, data=DATA, affine=LIA, sform=1, qform=1, units="mm", kind=nib.Nifti1Image):
    image = kind(data, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return str(path)


@pytest.mark.parametrize("affine", [LIA, TILTED], ids=["LIA", "tilted"])
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_voxels_are_where_itk_puts_them(tmp_path, affine, sform, qform, ending):
    path = save(tmp_path / f"a.{ending}", affine=affine, sform=sform, qform=qform)
    v, image = open_volume(path), sitk.ReadImage(path)
    for z, y, x in [(0, 0, 0), (6, 5, 4), (3, 2, 1)]:
        np.testing.assert_allclose(v.grid.to_world((z, y, x))[::-1], image.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-4)
    np.testing.assert_array_equal(v.read(), sitk.GetArrayFromImage(image))
    assert v.grid.oriented
    assert v.grid.unit == "millimeter"


@pytest.mark.parametrize(("units", "name"), [("micron", "micrometer"), ("meter", "meter"), ("unknown", "millimeter")])
def test_units_are_those_of_the_header(tmp_path, units, name):
    path = save(tmp_path / "a.nii", units=units)
    assert open_volume(path).grid.unit == name
    told = f"1.5 {name}  (z x y x x{'; unit not stated: taken as millimeter' * (units == 'unknown')})"
    assert told in "\n".join(describe(path).lines())
    assert describe(f"{path}::unit=mm").unit_stated


def test_without_a_coded_form_only_the_voxel_size_is_known(tmp_path):
    g = open_volume(save(tmp_path / "a.nii", sform=0, qform=0)).grid
    assert g.spacing == pytest.approx((2.0, 1.2, 1.5))
    assert not g.oriented


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_slope_and_intercept_are_applied(tmp_path, ending, dtype):
    image = nib.Nifti1Image(DATA.astype(dtype), LIA)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(open_volume(tmp_path / f"a.{ending}").read(), nib.load(tmp_path / f"a.{ending}").get_fdata().T)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_regions_of_local_and_remote_files_are_read(tmp_path, ending, place):
    path = save(tmp_path / f"a.{ending}")
    if place == "memory":
        url = f"memory://{tmp_path.name}/a.{ending}"
        with fsspec.open(url, "wb") as file:
            file.write((tmp_path / f"a.{ending}").read_bytes())
        path = url
    r = Region((1, 2, 3), (6, 5, 4))
    np.testing.assert_array_equal(open_volume(path).read(r), DATA.T[r.slices])


def test_time_points_are_chosen(tmp_path):
    data = np.stack([DATA, DATA + 1], -1)
    path = save(tmp_path / "a.nii.gz", data)
    with pytest.raises(AxesError, match=r"2 time points.*::time=0"):
        open_volume(path)
    np.testing.assert_array_equal(open_volume(path + "::time=1").read(), DATA.T + 1)
    assert open_volume(save(tmp_path / "b.nii", DATA[..., None])).shape == (7, 6, 5)


def test_nifti_2_and_big_endian_files_are_read(tmp_path):
    np.testing.assert_array_equal(open_volume(save(tmp_path / "a.nii", kind=nib.Nifti2Image)).read(), DATA.T)
    nib.save(nib.Nifti1Image(DATA, LIA, nib.Nifti1Header(endianness=">")), tmp_path / "b.nii")
    np.testing.assert_array_equal(open_volume(tmp_path / "b.nii").read(), DATA.T)


def test_two_dimensional_complex_and_colour_files_are_refused(tmp_path):
    with pytest.raises(AxesError):
        open_volume(save(tmp_path / "a.nii", DATA[:, :, 0]))
    with pytest.raises(Unreadable, match="complex64"):
        open_volume(save(tmp_path / "b.nii", DATA.astype(np.complex64)))
    colour = np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(Unreadable, match="real numbers"):
        open_volume(save(tmp_path / "c.nii", colour))


def test_damaged_files_are_unreadable(tmp_path):
    save(tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    packed = gzip.compress(whole)
    cases = {"empty.nii": b"", "empty.nii.gz": b"", "text.nii": b"hello" * 200, "short.nii": whole[:-9], "head.nii": whole[:100],
             "text.nii.gz": b"hello" * 200}  # fmt: skip
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match=name):
            open_volume(tmp_path / name)
    (tmp_path / "cut.nii.gz").write_bytes(packed[: len(packed) - 40])
    with pytest.raises(Unreadable, match=r"cut\.nii\.gz"):
        open_volume(tmp_path / "cut.nii.gz").read()
    with pytest.raises(NotFound, match="the nearest name"):
        open_volume(tmp_path / "empt.nii")
    with pytest.raises(ConfigError, match="no levels"):
        open_volume(tmp_path / "a.nii::level=1")


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16", "bool", "float16", "float64", "uint16"])
def test_itk_and_daskreg_read_what_was_written(tmp_path, ending, lazy, dtype):
    grid = Grid((4, 5, 6), (2.0, 1.0, 1.5), (5.0, -6.0, 7.0), ((0, 0, 1), (-1, 0, 0), (0, 1, 0)), "micrometer", True)
    data = (np.arange(120).reshape(4, 5, 6) % 2).astype(dtype)
    path = str(tmp_path / f"a.{ending}")
    write_image(path, da.from_array(data, chunks=2) if lazy else data, grid)
    image, v = sitk.ReadImage(path), open_volume(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), data)
    np.testing.assert_array_equal(v.read(), data)
    np.testing.assert_allclose(v.grid.to_unit("um").corners(), grid.corners(), atol=1e-4)
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((5, 4, 3)), grid.to_world((3, 4, 5))[::-1] * 1e-3, atol=1e-6)

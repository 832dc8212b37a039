"""NIfTI files that are damaged, misnamed or state two places: refused, or told of."""

import gzip
import io

import fsspec
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.errors import GridError, InputError, OutputError, Unreadable, VoxelError
from daskreg.grid import Grid, Region
from daskreg.storage import describe, open_volume, write_image
from daskreg.storage.transform_record import StoredLink
from daskreg.storage.transforms import open_transform, write_links
from daskreg.workflows.info import info

RNG = np.random.default_rng(3)
VOXELS = (RNG.random((9, 10, 11)) * 255).astype(np.uint8)  # i, j, k
AFFINE = np.array([[-1.5, 0, 0, 90], [0, 0, 2.0, -80], [0, -1.2, 0, 70], [0, 0, 0, 1.0]])
SHEARED = np.array([[1.0, 0.25, 0, -10], [0, 1.2, 0.1, -11], [0.05, 0, 1.5, -12], [0, 0, 0, 1]])


def plain(affine=AFFINE, edit=None, data=VOXELS):
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    if edit:
        edit(image.header)
    raw = io.BytesIO()
    image.to_file_map({"image": nib.FileHolder(fileobj=raw)})
    return bytearray(raw.getvalue())


def with_field(name, value):
    """A file whose header has another value at one place, which nibabel would not write."""
    raw = plain()
    kind, place = nib.Nifti1Header.template_dtype.fields[name]
    raw[place : place + kind.itemsize] = np.asarray(value, kind.base).tobytes()
    return bytes(raw)


def packed():
    return bytearray(gzip.compress(bytes(plain())))


@pytest.fixture
def saved(tmp_path):
    def save(content, name="a.nii.gz"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return save


def test_a_flipped_bit_of_a_compressed_file_is_found(saved):
    """What gzip keeps beside the voxels, such as spare bits of the last byte of its stream, may change; the voxels may not."""
    expected, rng, found = open_volume(saved(packed(), "right.nii.gz")).read(), np.random.default_rng(0), 0
    for k, place in enumerate(rng.integers(10, len(packed()), 60)):
        content = packed()
        content[place] ^= 1 << int(rng.integers(8))
        try:
            np.testing.assert_array_equal(open_volume(saved(content, f"{k}.nii.gz")).read(), expected)
        except InputError:
            found += 1
    assert found >= 58


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 40])
def test_a_compressed_file_that_is_cut_short_is_found_also_when_its_first_planes_are_read(saved, cut):
    v = open_volume(saved(packed()[:-cut]))
    with pytest.raises(Unreadable, match="cut short or damaged"):
        v.read(Region((0, 0, 0), (1, *v.shape[1:])))


def test_damage_behind_the_planes_that_are_read_is_found_near_and_remote(saved, tmp_path):
    content = packed()
    content[-6] ^= 1  # of the checksum
    with fsspec.open(f"memory://{tmp_path.name}.nii.gz", "wb") as file:
        file.write(bytes(content))
    for path in (saved(content), f"memory://{tmp_path.name}.nii.gz"):
        v = open_volume(path)
        with pytest.raises(Unreadable, match="CRC"):
            v.read(Region((0, 0, 0), (1, *v.shape[1:])))


def test_a_file_that_is_damaged_after_it_was_read_is_found(saved):
    path = saved(packed())
    open_volume(path).read()
    content = packed()
    content[-6] ^= 1
    path.unlink()
    saved(content)
    with pytest.raises(Unreadable, match="CRC"):
        open_volume(path).read()


@pytest.mark.parametrize(("content", "name", "advice"), [
    (bytes(plain()), "a.nii.gz", r"is not compressed.*rename it to .*a\.nii\."),
    (bytes(packed()), "a.nii", r"is compressed.*rename it to .*a\.nii\.gz\."),
    (gzip.compress(bytes(packed())), "a.nii.gz", "does not start with a NIfTI header"),
    (bytes(plain())[:-9], "a.nii", "cut short"),
])  # fmt: skip
def test_misnamed_files_are_told_apart_from_damaged_ones(saved, content, name, advice):
    with pytest.raises(Unreadable, match=advice):
        open_volume(saved(content, name))


@pytest.mark.parametrize(("field", "value", "says"), [
    ("vox_offset", 100, "begin at byte 100; 352"),
    ("vox_offset", -1, "begin at byte"),
    ("vox_offset", 352.5, "begin at byte"),
    ("vox_offset", np.nan, "begin at byte nan"),
    ("vox_offset", np.inf, "begin at byte inf"),
    ("vox_offset", 1e9, "cut short"),
    ("scl_slope", np.inf, "multiplied by inf"),
    ("scl_slope", np.nan, "multiplied by nan"),
    ("scl_inter", np.inf, "plus inf"),
    ("bitpix", 16, "16 bits a voxel"),
    ("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1], "promises"),
    ("dim", [3, 9, 10, -11, 1, 1, 1, 1], "shape"),
    ("dim", [9, 9, 10, 11, 1, 1, 1, 1], "."),
    ("srow_x", [-1.5e30, 0, 0, 90], "no size of voxels"),
    ("srow_x", [-1.5e-30, 0, 0, 90], "no size of voxels"),
    ("srow_x", [-1.5, 0, 0, 1e30], "cannot be told|no voxel can be told"),
])  # fmt: skip
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_headers_that_no_voxel_can_be_placed_with_are_refused(saved, field, value, says, ending):
    if field == "vox_offset" and ending == "nii.gz":
        says += "|cut short"
    content = with_field(field, value)
    path = saved(gzip.compress(content) if ending == "nii.gz" else content, f"a.{ending}")
    with pytest.raises((Unreadable, GridError), match=says):
        open_volume(path).read()


def test_an_unset_slope_is_none(saved):
    content = bytearray(with_field("scl_slope", np.nan))
    place = nib.Nifti1Header.template_dtype.fields["scl_inter"][1]
    content[place : place + 4] = np.float32(np.nan).tobytes()
    np.testing.assert_array_equal(open_volume(saved(content, "a.nii")).read(), VOXELS.T)


def test_bytes_that_the_header_does_not_know_are_told_of(saved, caplog):
    open_volume(saved(with_field("dim", [3, 9, 10, 7, 1, 1, 1, 1]), "a.nii"))
    assert "360 more than its header states" in caplog.text


def test_all_voxels_are_read_when_asked_for(saved):
    assert info(saved(packed()), voxels=True).values == (VOXELS.min(), VOXELS.max())
    assert describe(saved(packed())).values is None
    data = VOXELS.astype(np.float32)
    data[3, 4, 5] = np.inf
    with pytest.raises(VoxelError, match="not finite"):
        info(saved(plain(data=data), "b.nii"), voxels=True)


@pytest.mark.parametrize(("qform", "sform", "itk"), [(1, 2, "qform"), (2, 1, "sform"), (1, 1, "sform"), (4, 3, "qform")])
def test_two_forms_that_disagree_are_told_of_with_the_one_that_itk_takes(tmp_path, caplog, qform, sform, itk):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 15
    image.set_qform(AFFINE, qform)
    image.set_sform(moved, sform)
    nib.save(image, tmp_path / "a.nii.gz")
    assert open_volume(tmp_path / "a.nii.gz").grid.origin == (70, 80, -105)
    assert "up to 15 millimeter apart; the sform is used" in caplog.text
    assert f"ITK, ANTs and 3D Slicer take the {itk}" in caplog.text
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetOrigin()[0] == (-90 if itk == "qform" else -105)


def test_forms_that_agree_are_not_told_of_and_a_voxel_size_that_does_not_is(tmp_path, saved, caplog):
    open_volume(saved(packed()))
    assert not caplog.text
    content = bytearray(with_field("pixdim", [1, 3, 2, 1.2, 1, 0, 0, 0]))
    place = nib.Nifti1Header.template_dtype.fields["qform_code"][1]
    content[place : place + 2] = b"\0\0"
    open_volume(saved(content, "b.nii"))
    assert "its pixdim" in caplog.text


def sheared_grid():
    flip = np.diag([1.0, -1, -1, 1])
    order = [2, 1, 0, 3]
    return Grid.from_matrix((11, 10, 9), (flip @ SHEARED[np.ix_(order, order)]), "millimeter")


def test_sheared_axes_are_written_where_itk_follows_or_refuses_them(tmp_path, caplog):
    """A qform has no shear, and ITK followed it."""
    grid = sheared_grid()
    data = VOXELS.T.astype(np.float32)
    write_image(tmp_path / "a.nii.gz", data, grid)
    assert "not at right angles" in caplog.text
    assert open_volume(tmp_path / "a.nii.gz").grid.corners() == pytest.approx(grid.corners(), abs=1e-4)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    write_image(tmp_path / "a.mha", data, grid)
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((8, 9, 10))[::-1], grid.to_world((10, 9, 8)), atol=1e-9)


def test_a_field_on_sheared_axes_is_refused_as_nifti_and_right_as_h5(tmp_path):
    grid = sheared_grid()
    field = RNG.normal(size=(3, *grid.shape)).astype(np.float32)
    with pytest.raises(OutputError, match=r"write the transform as \.h5 or \.zarr"):
        write_links(tmp_path / "w.nii.gz", [StoredLink(np.eye(4), grid, field)])
    assert not list(tmp_path.iterdir())
    write_links(tmp_path / "w.h5", [StoredLink(np.eye(4), grid, field)])
    point = grid.to_world((4, 5, 6))
    moved = sitk.ReadTransform(str(tmp_path / "w.h5")).TransformPoint(point[::-1].tolist())
    np.testing.assert_allclose(moved[::-1], point + field[:, 4, 5, 6], atol=1e-5)


@pytest.mark.parametrize(("origin", "told"), [(3.7e6, True), (3.7e3, False)])
def test_a_place_that_single_precision_does_not_hold_is_told_of(tmp_path, caplog, origin, told):
    grid = Grid((6, 7, 8), (0.5, 0.5, 0.5), (origin + 0.123, 0, 0), unit="micrometer", oriented=True)
    write_image(tmp_path / "a.nii.gz", np.zeros(grid.shape, np.float32), grid)
    write_links(tmp_path / "w.nii.gz", [StoredLink(np.eye(4), grid, np.zeros((3, *grid.shape), np.float32))])
    assert caplog.text.count("single precision") == 2 * told
    off = abs(open_volume(tmp_path / "a.nii.gz").grid.to_unit("um").corners() - grid.corners()).max()
    assert (off > 0.01 * 0.5) == told
    write_image(tmp_path / "a.zarr", np.zeros(grid.shape, np.float32), grid)
    assert open_volume(tmp_path / "a.zarr").grid.origin == pytest.approx(grid.origin, rel=1e-15)


# fields of other programs


def vectors(path, values, *, code=1007, name="", first=0.0, affine=None):
    """A file as SPM and NiftyReg write it: (X, Y, Z, 1, 3)."""
    image = nib.Nifti1Image(values[:, :, :, None].astype(np.float32), PLACES if affine is None else affine)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = code, name.encode(), first
    image.header.set_xyzt_units(2)
    nib.save(image, path)
    return path


PLACES = np.array([[1.9, -0.5, 0, -20], [0.5, 1.9, 0, -22], [0, 0, 2.5, -24], [0, 0, 0, 1]])
INDEX = np.stack(np.meshgrid(*map(np.arange, (14, 15, 16)), indexing="ij"), -1)
RAS = INDEX @ PLACES[:3, :3].T + PLACES[:3, 3]
SHIFT = np.array([3.0, -1, 2])  # RAS, x, y, z


def moved(path, place=(4, 5, 6)):
    """Where the field takes a voxel, LPS x, y, z."""
    (link,) = open_transform(path).links
    k, j, i = place
    return (link.grid.to_world(place) + np.asarray(link.field[:, k, j, i]))[::-1]


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize(("name", "first", "absolute", "said"), [
    ("Mapping", 0, True, "SPM"),
    ("NREG_TRANS", 0, True, "NiftyReg deformation"),
    ("NREG_TRANS", 1, False, "NiftyReg displacement"),
])  # fmt: skip
def test_fields_of_spm_and_niftyreg_move_points_as_they_mean(tmp_path, ending, name, first, absolute, said):
    wave = 2 * np.sin(RAS / 9) + SHIFT
    path = vectors(tmp_path / f"y.{ending}", wave + RAS * absolute, name=name, first=first)
    goal = (RAS + wave)[6, 5, 4] * [-1, -1, 1]
    np.testing.assert_allclose(moved(path), goal, atol=1e-5)
    assert said in open_transform(path).format
    assert open_transform(path).unit == "millimeter"


@pytest.mark.parametrize(("code", "sign"), [(1007, (1, 1, 1)), (1006, (-1, -1, 1))])
def test_fields_without_a_name_are_those_of_itk(tmp_path, code, sign):
    wave = 2 * np.sin(RAS / 9) + SHIFT
    path = vectors(tmp_path / "w.nii.gz", wave, code=code)
    np.testing.assert_allclose(moved(path), RAS[6, 5, 4] * [-1, -1, 1] + wave[6, 5, 4] * sign, atol=1e-5)


@pytest.mark.parametrize(("options", "says"), [
    ({"name": "NREG_TRANS", "first": 2}, "reg_transform"),
    ({"name": "NREG_TRANS", "first": 5}, "reg_transform"),
    ({"name": "NREG_TRANS", "first": 0.5}, "reg_transform"),
    ({"name": "NREG_TRANS", "code": 1006}, "reg_transform"),
    ({"name": "mapping"}, "named 'mapping'"),
    ({"name": "Displacement"}, "named 'Displacement'"),
    ({"name": "Mapping", "code": 1006}, "named 'Mapping'"),
    ({"code": 2006}, "intent 2006"),
    ({"code": 0}, "intent 0"),
])  # fmt: skip
def test_vectors_of_unclear_meaning_are_refused(tmp_path, options, says):
    with pytest.raises(Unreadable, match=says):
        open_transform(vectors(tmp_path / "w.nii", RAS, **options))


@pytest.mark.parametrize("sign", [(1, 1, 1), (-1, -1, 1)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_places_that_are_called_displacements_are_refused(tmp_path, sign, ending):
    with pytest.raises(Unreadable, match="its vectors are like places"):
        open_transform(vectors(tmp_path / f"w.{ending}", (RAS + np.sin(RAS / 9)) * sign))


def test_large_displacements_are_no_places(tmp_path):
    stretch = 0.4 * RAS + 5 * np.sin(RAS / 7)
    np.testing.assert_allclose(moved(vectors(tmp_path / "w.nii", stretch)), (RAS * [-1, -1, 1] + stretch)[6, 5, 4], atol=1e-5)


@pytest.mark.parametrize("form", ["qform", "sform"])
def test_a_form_that_is_stated_and_unusable_is_refused_whatever_the_other_says(saved, form):
    """Neither is the other one taken for it, nor the voxel sizes without an orientation."""
    other = {"qform": "sform", "sform": "qform"}[form]
    place = {"qform": "quatern_b", "sform": "srow_x"}[form]
    for code in (0, 1):
        raw = bytearray(with_field(place, np.full(4 if form == "sform" else 1, np.nan)))
        kind, at = nib.Nifti1Header.template_dtype.fields[f"{other}_code"]
        raw[at : at + 2] = np.asarray(code, kind.base).tobytes()
        with pytest.raises(GridError, match=rf"the {form} .* is singular or not finite"):
            open_volume(saved(bytes(raw), f"{code}.nii"))


def test_axes_that_span_a_plane_are_no_sform(saved):
    raw = bytearray(with_field("srow_x", [1, 0, 0, 0]))
    _, at = nib.Nifti1Header.template_dtype.fields["srow_y"]
    raw[at : at + 16] = np.asarray([1, 0, 0, 0], np.float32).tobytes()
    with pytest.raises(GridError, match=r"the sform .* is singular"):
        open_volume(saved(bytes(raw), "a.nii"))


@pytest.mark.parametrize(("slope", "inter"), [(1e37, 0), (1e-42, 0), (1e-4, 1e6), (-2.0, 5.0)])
def test_scaled_voxels_are_finite_and_told_apart(saved, slope, inter):
    """Single precision is for scales whose values it holds."""
    raw = bytearray(with_field("scl_slope", slope))
    _, at = nib.Nifti1Header.template_dtype.fields["scl_inter"]
    raw[at : at + 4] = np.asarray(inter, np.float32).tobytes()
    found = open_volume(saved(bytes(raw), "a.nii")).data.compute(scheduler="synchronous")
    expected = VOXELS.T * float(np.float32(slope)) + float(np.float32(inter))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(np.unique(found)) == len(np.unique(VOXELS))
    assert found.dtype == (np.float32 if slope == -2 else np.float64)

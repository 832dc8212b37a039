"""Transforms that ITK reads back the same, and ITK's that we read back the same."""

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.errors import GridError, NotFound, OutputError, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.storage import write_image
from daskreg.storage.transform_record import StoredLink
from daskreg.storage.transforms import open_transform, read_affine, write_affine, write_links

AFFINE = np.array([[1.1, 0.02, -0.1, 5.0], [0.03, 0.9, 0.2, -7.0], [0.05, -0.04, 1.05, 2.0], [0, 0, 0, 1]])
POINT = np.array([3.0, -4.0, 10.0])  # z, y, x
OBLIQUE = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))


def by_itk(transform, point):
    return np.asarray(transform.TransformPoint([float(v) for v in point[::-1]]))[::-1]


def by_matrix(matrix, point):
    return (matrix @ [*point, 1])[:3]


@pytest.mark.parametrize("ending", ["tfm", "txt", "mat"])
def test_itk_reads_an_affine_that_was_written(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write_affine(path, AFFINE)
    transform = sitk.ReadTransform(str(path))
    np.testing.assert_allclose(by_itk(transform, POINT), by_matrix(AFFINE, POINT), rtol=1e-12)
    np.testing.assert_allclose(read_affine(path), AFFINE, rtol=1e-12)


def euler(order_zyx):
    t = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.3, -0.2, 0.5, (4.0, 5.0, 6.0))
    t.SetComputeZYX(order_zyx)
    return t


def composite():
    t = sitk.CompositeTransform(3)
    t.AddTransform(euler(False))
    t.AddTransform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)))
    t.AddTransform(sitk.AffineTransform([1, 0.2, 0, 0, 1.1, 0, 0.1, 0, 0.9], (1, 1, 2), (3, 4, 5)))
    return t


def scale():
    t = sitk.ScaleTransform(3, (1.2, 0.9, 2.0))
    t.SetCenter((4.0, 5.0, 6.0))
    return t


ITK = {
    "affine": sitk.AffineTransform([1, 0.2, 0, 0, 1.1, 0, 0.1, 0, 0.9], (1, 1, 2), (3, 4, 5)),
    "translation": sitk.TranslationTransform(3, (1.0, 2.0, 3.0)),
    "euler": euler(False),
    "euler ZYX": euler(True),
    "versor": sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.7, (1, 2, 3), (4, 5, 6)),
    "similarity": sitk.Similarity3DTransform(1.3, (0.0, 0.6, 0.8), 0.7, (1, 2, 3), (4, 5, 6)),
    "scale": sitk.ScaleTransform(3, (1.2, 0.9, 2.0)),
    "scale about a centre": scale(),
    "composite": composite(),
}


@pytest.mark.parametrize("kind", ITK)
def test_linear_transforms_of_itk_map_points_the_same(tmp_path, kind):
    path = str(tmp_path / "t.tfm")
    sitk.WriteTransform(ITK[kind], path)
    np.testing.assert_allclose(by_matrix(read_affine(path), POINT), by_itk(ITK[kind], POINT), atol=1e-9)


@pytest.mark.parametrize("kind", ["affine", "euler", "versor"])
def test_binary_transforms_of_itk_map_points_the_same(tmp_path, kind):
    path = str(tmp_path / "t.mat")
    sitk.WriteTransform(ITK[kind], path)
    np.testing.assert_allclose(by_matrix(read_affine(path), POINT), by_itk(ITK[kind], POINT), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("flirt.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "mat"),
        ("plain.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "plain matrix"),
        ("empty.tfm", "", "not an ITK transform"),
        ("none.tfm", "#Insight Transform File V1.0\n", "without a transform"),
        (
            "spline.tfm",
            "#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1\n",
            "holds a BSpline.*Write a linear",
        ),
        ("flat.tfm", "#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\nParameters: 1\n", "of three axes"),
        ("short.tfm", "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2\n", "2 parameters"),
        ("word.tfm", "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: a b\n", "cannot be read"),
    ],
)
def test_files_that_are_no_linear_transform_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(Unreadable, match=says):
        read_affine(tmp_path / name)


def test_a_missing_transform_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        read_affine(tmp_path / "none.tfm")


def test_affines_are_overwritten_only_with_overwrite(tmp_path):
    write_affine(tmp_path / "a.tfm", AFFINE)
    with pytest.raises(OutputExists):
        write_affine(tmp_path / "a.tfm", AFFINE)
    write_affine(tmp_path / "a.tfm", np.eye(4), overwrite=True)
    np.testing.assert_array_equal(read_affine(tmp_path / "a.tfm"), np.eye(4))
    with pytest.raises(OutputError, match="ending"):
        write_affine(tmp_path / "a.csv", AFFINE)


def write_field(path, field, grid):
    write_links(path, [StoredLink(np.eye(4), grid, field)])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize(("unit", "scale"), [("millimeter", 1.0), ("micrometer", 1e-3), (None, 1.0)])
@pytest.mark.parametrize("lazy", [False, True])
def test_itk_moves_a_point_by_the_displacement_that_was_written(tmp_path, ending, unit, scale, lazy):
    grid = Grid((9, 10, 11), (2.0, 1.0, 1.5), (5.0, -6.0, 7.0), OBLIQUE, unit, True)
    field = np.random.default_rng(0).normal(size=(3, *grid.shape)).astype(np.float32)
    path = str(tmp_path / f"warp.{ending}")
    write_field(path, da.from_array(field, chunks=(3, 4, 4, 4)) if lazy else field, grid)
    image = sitk.ReadImage(path, sitk.sitkVectorFloat64)
    assert image.GetNumberOfComponentsPerPixel() == 3
    assert image.GetDimension() == 3
    transform = sitk.DisplacementFieldTransform(image)
    for index in [(1, 2, 3), (7, 8, 9), (4, 5, 1)]:
        point = grid.to_world(index) * scale
        expected = point + field[(slice(None), *index)] * scale
        np.testing.assert_allclose(by_itk(transform, point), expected, rtol=1e-5, atol=1e-5)


def test_displacement_and_image_have_the_same_grid_in_itk(tmp_path):
    grid = Grid((9, 10, 11), (2.0, 1.0, 1.5), (5.0, -6.0, 7.0), OBLIQUE, "micrometer", True)
    write_field(tmp_path / "w.nii.gz", np.zeros((3, 9, 10, 11), np.float32), grid)
    write_image(tmp_path / "i.nii.gz", np.zeros((9, 10, 11), np.float32), grid)
    warp, image = (sitk.ReadImage(str(tmp_path / n)) for n in ("w.nii.gz", "i.nii.gz"))
    for ask in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(warp, ask)(), getattr(image, ask)(), rtol=1e-6)


def test_a_displacement_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(GridError, match="was expected"):
        write_field(tmp_path / "w.nii", np.zeros((9, 10, 11, 3), np.float32), Grid((9, 10, 11)))
    with pytest.raises(OutputError, match="endings"):
        write_field(tmp_path / "w.mha", np.zeros((3, 9, 10, 11), np.float32), Grid((9, 10, 11)))


def test_a_spline_in_a_composite_is_told_by_its_type(tmp_path):
    """It was told by the number of its parameters."""
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "b.h5"))
    with pytest.raises(Unreadable, match=r"holds a BSplineTransform_double_3_3; of three axes .*TransformToDisplacementField"):
        open_transform(tmp_path / "b.h5")

"""What a run exports, ITK applies as daskreg does."""

import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.storage import open_volume, write_image
from daskreg.workflows.apply import apply
from daskreg.workflows.export import export
from tests.phantoms import blobs
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run


@pytest.fixture(scope="module", params=["mm", "um"])
def files(request, tmp_path_factory):
    """Images, moved and transforms on disk, of a run in millimetres or micrometres."""
    folder = tmp_path_factory.mktemp("itk")
    fixed, moving = FIXED.to_unit(request.param), MOVING.to_unit(request.param)
    scale, matrix = (1 if request.param == "mm" else 1000), affine()
    matrix[:3, 3] *= scale
    run = make_run(folder / "run.zarr", matrix, displacement() * np.float32(scale), fixed=fixed, moving=moving)
    image = blobs(moving.shape)
    write_image(folder / "moving.nii.gz", image, moving)
    moved = apply(run, open_volume(image, grid=moving), folder / "moved.nii.gz")
    for name, part in (("total.nii.gz", "total"), ("warp.nii.gz", "warp"), ("affine.mat", "affine"), ("affine.tfm", "affine")):
        export(run, folder / name, part=part)
    return folder, moved


def resampled(folder, transform):
    moving, fixed = (sitk.ReadImage(str(folder / n)) for n in ("moving.nii.gz", "moved.nii.gz"))
    ones = moving * 0 + 1
    eroded = sitk.ConstantPad(ones[1:-1, 1:-1, 1:-1], (1, 1, 1), (1, 1, 1))
    values = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    inside = sitk.Resample(eroded, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    return sitk.GetArrayFromImage(values), sitk.GetArrayFromImage(inside) > 0.999


def field(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def assert_same(moved, itk, inside):
    assert inside.mean() > 0.3
    difference = np.abs(moved - itk)[inside]
    assert difference.mean() / np.abs(itk[inside]).mean() < 0.005
    assert difference.max() < 1e-3 * np.ptp(itk)


def test_the_total_displacement_alone(files):
    folder, moved = files
    assert_same(moved.data.compute(), *resampled(folder, field(folder / "total.nii.gz")))


@pytest.mark.parametrize("name", ["affine.mat", "affine.tfm"])
def test_the_affine_after_the_warp(files, name):
    folder, moved = files
    composite = sitk.CompositeTransform([sitk.ReadTransform(str(folder / name)), field(folder / "warp.nii.gz")])
    assert_same(moved.data.compute(), *resampled(folder, composite))

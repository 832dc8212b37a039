"""From MetaImage and NRRD to NRRD through the command line: the same voxels as through NIfTI, and where ITK has them."""

import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.storage import RunStore, open_volume, write_image
from daskreg.workflows.demo import demo_pair
from tests.integration.test_cli import QUICK, run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The bundled pair as MetaImage and NRRD."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "quick.yaml").write_text(QUICK)
    for path, name in zip(demo_pair(3), ("fixed.mha", "moving.nrrd")):
        volume = open_volume(path)
        write_image(folder / name, volume.data, volume.grid)
    return folder


def register(folder, capsys, fixed, moving, output):
    given = [folder / fixed, folder / moving, "-o", folder / output]  # an absolute path replaces the folder
    code, _, err = run(capsys, "register", *given, "--config", folder / "quick.yaml", "--device", "cpu")
    assert code == 0, err
    return RunStore.open(folder / output)


def test_register_apply_and_jacobian_take_and_make_files_of_itk(images, capsys):
    nifti = register(images, capsys, *demo_pair(3), "nifti.zarr")
    itk = register(images, capsys, "fixed.mha", "moving.nrrd", "itk.zarr")
    np.testing.assert_array_equal(itk.affine, nifti.affine)
    np.testing.assert_array_equal(itk.displacement().compute(), nifti.displacement().compute())
    for source, output in (("moving.nrrd", "moved.nrrd"), ("moving.nrrd", "moved.nii.gz")):
        code, _, err = run(capsys, "apply", images / "itk.zarr", images / source, "-o", images / output)
        assert code == 0, err
    moved = sitk.ReadImage(str(images / "moved.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), open_volume(images / "moved.nii.gz").data.compute())
    fixed = sitk.ReadImage(str(images / "fixed.mha"))
    assert moved.GetSize() == fixed.GetSize()
    np.testing.assert_allclose(moved.GetOrigin(), fixed.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(moved.GetDirection(), fixed.GetDirection(), atol=1e-6)
    code, out, err = run(capsys, "jacobian", images / "itk.zarr", "-o", images / "determinant.mha")
    assert code == 0, err
    assert "voxels fold" in out + err
    assert sitk.ReadImage(str(images / "determinant.mha")).GetPixelIDTypeAsString() == "32-bit float"


def test_info_says_what_a_file_is_and_a_run_is_not_named_like_one(images, capsys):
    code, out, _ = run(capsys, "info", images / "fixed.mha")
    assert (code, "MetaImage" in out, "mm" in out or "millimeter" in out) == (0, True, True)
    code, _, err = run(capsys, "register", images / "fixed.mha", images / "moving.nrrd", "-o", images / "run.nrrd")
    assert (code, "a run is a Zarr store" in err) == (2, True)

"""The transform of a run in files for other tools."""

import errno

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.errors import ConfigError, GridError, NotFound, OutOfSpace, OutputError, OutputExists
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage.transforms import read_affine
from daskreg.workflows.export import displacement_field, export
from tests.unit.workflows.runs import FIXED, affine, displacement, make_run


def on_disk(path):
    """(3, Z, Y, X), components z, y, x."""
    return np.asarray(nib.load(path).dataobj)[:, :, :, 0].T[::-1]


def everywhere(grid=FIXED):
    return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def test_total_is_where_phi_takes_each_voxel(tmp_path):
    run = make_run(tmp_path / "r.zarr", affine(), displacement())
    export(run.path, tmp_path / "total.nii.gz")
    moved = load_transform(run).points(everywhere())
    np.testing.assert_allclose(on_disk(tmp_path / "total.nii.gz"), np.moveaxis(moved - everywhere(), -1, 0), atol=1e-5)
    with pytest.raises(OutputExists):
        export(run, tmp_path / "total.nii.gz")


def test_warp_is_the_displacement_alone(tmp_path):
    run = make_run(tmp_path / "r.zarr", affine(), displacement())
    assert export(run, tmp_path / "warp.nii", part="warp") == tmp_path / "warp.nii"
    np.testing.assert_allclose(on_disk(tmp_path / "warp.nii"), displacement(), atol=1e-6)


def test_files_are_in_millimetres(tmp_path):
    fixed, matrix = FIXED.to_unit("um"), affine()
    matrix[:3, 3] *= 1000
    run = make_run(tmp_path / "r.zarr", matrix, displacement() * 1000, fixed=fixed)
    export(run, tmp_path / "total.nii")
    export(run, tmp_path / "affine.mat", part="affine")
    wanted = np.moveaxis(load_transform(run).points(everywhere(fixed)) - everywhere(fixed), -1, 0) / 1000
    np.testing.assert_allclose(on_disk(tmp_path / "total.nii"), wanted, atol=1e-5)
    np.testing.assert_allclose(read_affine(tmp_path / "affine.mat"), affine(), atol=1e-9)


@pytest.mark.parametrize("name", ["affine.mat", "affine.tfm", "affine.txt"])
def test_the_affine_reads_back(tmp_path, name):
    export(make_run(tmp_path / "r.zarr", affine()), tmp_path / name, part="affine")
    np.testing.assert_allclose(read_affine(tmp_path / name), affine())


def test_a_linear_run_has_a_total_but_no_warp(tmp_path):
    run = make_run(tmp_path / "r.zarr", affine())
    export(run, tmp_path / "total.mat")
    np.testing.assert_allclose(read_affine(tmp_path / "total.mat"), affine())
    wanted = everywhere() @ (affine() - np.eye(4))[:3, :3].T + affine()[:3, 3]
    np.testing.assert_allclose(displacement_field(load_transform(run)).compute(), np.moveaxis(wanted, -1, 0), atol=1e-5)
    with pytest.raises(NotFound, match="--part affine"):
        export(run, tmp_path / "warp.nii", part="warp")


def test_an_ending_or_a_word_that_does_not_suit_is_said(tmp_path):
    with pytest.raises(OutputError, match=r"field, written as \.nii"):
        export(make_run(tmp_path / "d.zarr", affine(), displacement()), tmp_path / "total.mat")
    run = make_run(tmp_path / "r.zarr", affine())
    with pytest.raises(OutputError, match=r"a transform without displacement is written as \.mat.*\.h5.*\.nii"):
        export(run, tmp_path / "total.tif")
    with pytest.raises(OutputError, match=r"affine is written as \.mat"):
        export(run, tmp_path / "affine.nii", part="affine")
    with pytest.raises(ConfigError, match="unknown part 'afine'; did you mean 'affine'"):
        export(run, tmp_path / "affine.mat", part="afine")


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path, monkeypatch):
    run = make_run(tmp_path / "r.zarr")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("daskreg.storage.runs.transforms.zarr.create_group", full)
    with pytest.raises(OutOfSpace, match=f"^{tmp_path / 't.zarr'}: no space left"):
        export(run, tmp_path / "t.zarr")


def test_an_affine_without_a_grid_is_told_which_ending_suits_it(tmp_path):
    bare = Transform.of(affine(), unit="mm")
    for name, one_field in (("x.nii.gz", False), ("x.zarr", True)):
        with pytest.raises(GridError, match="--part affine"):
            export(bare, tmp_path / name, one_field=one_field)
    export(bare, tmp_path / "x.zarr")
    export(bare, tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("name", "part", "said"), [("t.h5", "total", "the whole transform of"), ("a.tfm", "affine", "the affine map of")]
)
def test_the_command_says_in_words_what_it_wrote(tmp_path, name, part, said):
    run = make_run(tmp_path / "r.zarr", affine())
    found = CliRunner().invoke(app, ["export", run.path, "-o", str(tmp_path / name), "--part", part])
    assert found.output.startswith(f"{tmp_path / name}: {said} {run.path}")

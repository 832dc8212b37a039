"""The images of a run are found from every folder, and another image is never taken for one of them."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from daskreg import Moments, register
from daskreg.errors import ConfigError, NotFound
from daskreg.grid import Grid
from daskreg.storage import RunStore, open_volume, write_image
from daskreg.storage.recorded_images import recorded_image
from daskreg.workflows.compare import compare
from daskreg.workflows.export import export
from daskreg.workflows.inputs import Request
from daskreg.workflows.report import report
from daskreg.workflows.view import view
from tests.phantoms import blobs

GRID = Grid((12, 14, 16), (2.0, 1.0, 1.0), unit="mm")
CONFIG = [Moments()]
IMAGE = blobs(GRID.shape)
NAMES = {"fixed": "fixed.nii.gz", "moving": "moving.ome.zarr"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of images that were named by relative paths; beside it, a folder of other images of the same names and shapes."""
    top = tmp_path_factory.mktemp("recorded")
    for folder, image in (("A", IMAGE), ("C", IMAGE[:, ::-1])):
        os.mkdir(top / folder)
        for name in NAMES.values():
            write_image(top / folder / name, image, GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top / "A")
        register(*NAMES.values(), CONFIG, output="x.zarr", progress=False)
    return top


def voxels(address):
    return open_volume(address).data.compute()


@pytest.mark.parametrize("role", NAMES)
def test_an_image_is_where_the_run_has_read_it(made, monkeypatch, role):
    monkeypatch.chdir(made / "C")
    found = recorded_image(RunStore.open("../A/x.zarr"), role)
    assert found == str(made.resolve() / "A" / NAMES[role])
    np.testing.assert_array_equal(voxels(found), IMAGE)


@pytest.mark.parametrize("role", NAMES)
def test_images_that_were_moved_with_their_run_are_found(made, tmp_path, monkeypatch, role):
    shutil.copytree(made, tmp_path / "top")
    shutil.move(made / "A", made / "hidden")
    monkeypatch.chdir(tmp_path / "top" / "C")
    try:
        assert recorded_image(RunStore.open("../A/x.zarr"), role) == str(tmp_path.resolve() / "top" / "A" / NAMES[role])
        os.rename(tmp_path / "top" / "A" / NAMES[role], tmp_path / "elsewhere")
        with pytest.raises(NotFound, match=f"{made.resolve() / 'A' / NAMES[role]}"):
            recorded_image(RunStore.open("../A/x.zarr"), role)
    finally:
        shutil.move(made / "hidden", made / "A")


def test_another_image_in_its_place_is_refused_or_told(made, tmp_path, monkeypatch, caplog):
    kept = made / "kept"
    shutil.copytree(made / "A", kept)
    monkeypatch.chdir(made / "C")
    try:
        for name in NAMES.values():
            write_image(made / "A" / name, IMAGE[:, ::-1], GRID, overwrite=True)
        run = RunStore.open("../A/x.zarr")
        for role in NAMES:
            with pytest.raises(ConfigError, match=f"is not the {role} image that .* was made from, or has changed since"):
                recorded_image(run, role)
        text = report("../A/x.zarr", tmp_path / "page.html").read_text(encoding="utf-8")
        assert "The fixed image is not shown" in text
        assert "The moving image is not shown" in text
        with pytest.raises(ConfigError, match="fixed image that"):
            compare("../A/x.zarr", ["ants"], tmp_path / "table")
        with pytest.raises(ConfigError, match="moving image that"):
            export("../A/x.zarr", tmp_path / "scene.zarr", images=True, fixed=made / "C" / NAMES["moving"])
        with view("../A/x.zarr") as shown:
            assert set(shown.images) == {"moved"}
        assert "the moved image that" in caplog.text
        assert "the fixed image is not shown" in caplog.text
    finally:
        shutil.rmtree(made / "A")
        shutil.move(kept, made / "A")


def test_other_times_alone_are_a_warning(made, monkeypatch, caplog):
    monkeypatch.setattr("daskreg.storage.digest.BUDGET", 512)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made / "A")
        register(*NAMES.values(), CONFIG, output="large.zarr", progress=False)
    os.utime(made / "A" / NAMES["fixed"], (1, 1))
    assert recorded_image(RunStore.open(made / "A" / "large.zarr"), "fixed") is not None
    assert "the time at which files of it were written has changed" in caplog.text


def test_an_object_of_another_library_has_no_address(tmp_path, caplog):
    image = nib.Nifti1Image(IMAGE, np.diag([1.0, 1.0, 2.0, 1.0]))
    store = RunStore.create(tmp_path / "x.zarr", fixed=GRID, moving=GRID, recipe=Request(image, image, CONFIG).recipe())
    run = store.finish({"inputs": {role: {"name": open_volume(image).name} for role in NAMES}})
    assert [recorded_image(run, role) for role in NAMES] == [None, None]
    assert "digest" not in caplog.text

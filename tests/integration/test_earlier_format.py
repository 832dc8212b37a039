"""Runs that the first version wrote stay readable: one of them, on an oblique grid, with the points it made."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from daskreg.lazy.load import load_transform
from daskreg.storage import RunStore
from daskreg.workflows.export import export
from daskreg.workflows.report import report


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with zipfile.ZipFile(Path(__file__).parents[1] / "data" / "run_format1.zip") as packed:
        packed.extractall(folder)
    return folder / "run.zarr", np.load(folder / "expected.npz")


def test_its_transform_is_what_it_was(earlier):
    path, wanted = earlier
    run, transform = RunStore.open(path), load_transform(path)
    assert run.state["format"] == 1
    np.testing.assert_array_equal(run.displacement().compute(), wanted["displacement"])
    np.testing.assert_array_equal(transform.affine, wanted["affine"])
    np.testing.assert_allclose(transform.points(wanted["points"]), wanted["moved"], atol=1e-9)
    assert np.abs(wanted["displacement"]).max() > 0.1


def test_it_becomes_a_scene_and_a_report(earlier, tmp_path):
    path, wanted = earlier
    export(path, tmp_path / "scene.zarr")
    np.testing.assert_allclose(load_transform(tmp_path / "scene.zarr").points(wanted["points"]), wanted["moved"], atol=1e-5)
    assert report(path, tmp_path / "r.html").stat().st_size > 1000

"""A registration that starts from a transform, its displacement included; on several workers in ``test_workers``."""

import logging

import numpy as np
import pytest
import SimpleITK as sitk

import daskreg
from daskreg import MSE, Affine, Deformable, Moments
from daskreg.errors import ConfigError
from daskreg.lazy.load import load_transform
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.export import export

pytestmark = pytest.mark.usefixtures("without_verdicts")
FIXED, MOVING = demo_pair(3)
STAGES = [Moments(), Affine(scales=(4,)), Deformable(similarity=MSE(), scales=(4, 2), iterations=(40, 20))]


def again(start, *, iterations=4, scales=(2,), stages=None):
    stage = Deformable(similarity=MSE(), scales=scales, iterations=(iterations,), tolerance=0)
    config = daskreg.Config(stages=tuple(stages or [stage]), initial_transform=str(start))
    return daskreg.register(FIXED, MOVING, config)


def deformable(result):
    return [level["losses"] for level in result.report["levels"] if level["stage"] == "deformable"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return daskreg.register(FIXED, MOVING, STAGES, output=tmp_path_factory.mktemp("first") / "run.zarr")


@pytest.fixture(scope="module")
def second(first):
    return again(first.path)


def test_it_continues_where_the_first_run_stopped(first, second):
    before, after = deformable(first)[-1], deformable(second)[0]
    assert after[0] == pytest.approx(before[-1], rel=0.1)  # a coarse level sees the full field through its own voxels
    assert after[-1] < after[0] < 0.7 * deformable(first)[0][0]
    everywhere = first.store.fixed_grid.region
    moved = load_transform(second.path).field(everywhere) - load_transform(first.path).field(everywhere)
    assert np.abs(moved).max() < 4 * 0.5 * 6  # four steps of at most half a voxel of the level


def test_linear_stages_are_skipped_with_a_message(first, caplog):
    with caplog.at_level(logging.INFO, "daskreg"):
        result = again(first.path, stages=[Moments(), Affine(), Deformable(similarity=MSE(), scales=(4,), iterations=(1,))])
    assert "without the stages moments, affine" in caplog.text
    assert [level["stage"] for level in result.report["levels"]] == ["deformable"]
    np.testing.assert_array_equal(result.affine, first.affine)
    with pytest.raises(ConfigError, match="only a deformable stage"):
        again(first.path, stages=[Affine()])


@pytest.mark.parametrize("name", ["composite.h5", "total.nii.gz"])
def test_itk_files_are_initial_transforms(first, second, tmp_path, name):
    export(first.path, tmp_path / name)
    after = deformable(again(tmp_path / name, iterations=1))[0]
    assert after[0] == pytest.approx(deformable(second)[0][0], rel=0.02)


def test_an_itk_affine_starts_linear_stages(first, tmp_path):
    t = sitk.AffineTransform(3)
    t.SetTranslation((2.0, -3.0, 1.0))
    sitk.WriteTransform(t, str(tmp_path / "start.tfm"))
    result = again(tmp_path / "start.tfm", stages=[Affine(scales=(4,), iterations=(1,))])
    assert [level["stage"] for level in result.report["levels"]] == ["affine"]

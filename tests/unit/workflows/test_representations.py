"""What a notebook and a prompt show of a value is short, and escaped."""

import numpy as np
import pytest

import daskreg
from daskreg.html import table


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    voxels = np.random.default_rng(0).random((12, 14, 16), np.float32)
    grid = daskreg.Grid((12, 14, 16), (2.0, 1.0, 1.0), unit="millimeter")
    fixed, moving = (daskreg.open_volume(v, grid=grid) for v in (voxels, voxels + np.float32(0.1)))
    stages = [daskreg.Deformable(scales=2, iterations=2)]
    output = tmp_path_factory.mktemp("shown") / "run.zarr"
    return daskreg.register(fixed, moving, stages, output=output, progress=False)


@pytest.fixture(scope="module")
def plan():
    return daskreg.plan(*daskreg.demo_pair(3), daskreg.Deformable(scales=2))


def test_a_value_is_one_short_line(result, plan):
    shown = {
        "Grid(12 x 14 x 16 at 2 x 1 x 1 millimeter": result.moved.grid,
        "Volume(": result.moved,
        "Transform(displacement 12 x 14 x 16 and affine, millimeter)": result.transform,
        "Result(": result,
        "Plan(1 stage, 1 level, 1 worker, ": plan,
    }
    for start, value in shown.items():
        assert repr(value).startswith(start)
        assert len(repr(value)) < 200 + len(result.path)
        assert "\n" not in repr(value)


def test_what_has_lines_prints_them_and_is_one_line_at_a_prompt(result, tmp_path):
    served = daskreg.view(result)
    shown = {
        "ServedImages(http://127.0.0.1:": served,
        "VirtualImage(moved, 12 x 14 x 16 at 2 x 1 x 1 millimeter, float32, 1 level)": served.images["moved"],
        "VolumeInfo(image ": daskreg.info(result),
        "Evaluation(verdict: ": daskreg.evaluate(result),
        "Verdict(verdict: ": result.verdict,
        "Folds(0 of 2688 voxels fold": daskreg.jacobian(result, tmp_path / "j.nii.gz"),
        "Examination(": daskreg.doctor(),
    }
    for start, value in shown.items():
        assert repr(value).startswith(start)
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)
        if hasattr(value, "lines"):
            assert str(value) == "\n".join(value.lines())
            assert value._repr_html_().startswith("<div><b>")
    served.close()
    assert repr(served).endswith("closed)")


def test_a_notebook_shows_tables_and_pictures(result):
    for value in (result.moved.grid, result.moved, result.transform, result.report):
        assert value._repr_html_().startswith("<div><b>")
    shown = result._repr_html_()
    assert shown.count("<img") == 3  # the fixed image was an array
    assert "verdict" in shown
    assert result.path in shown
    assert "scale 2" in result.report._repr_html_()


def test_a_plan_is_its_table(plan):
    shown = plan._repr_html_()
    assert all(line in shown for line in str(plan).splitlines() if not set("<>&\"'") & set(line))


def test_names_are_escaped():
    assert "<script>" not in table("<script>", [("<script>", "<script>")])

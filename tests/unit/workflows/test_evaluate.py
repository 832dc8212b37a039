"""Labels, landmarks and folds of a finished run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from daskreg.errors import ConfigError, NotFound, VoxelError
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import open_volume
from daskreg.storage.images import _warn_of_unit_spacing
from daskreg.workflows.apply import apply
from daskreg.workflows.evaluate import evaluate
from tests.phantoms import label_pair, smooth_field
from tests.unit.workflows.runs import FIXED, affine, displacement, make_run

SHAPE = (30, 34, 38)
GRID = Grid(SHAPE, (1.0, 2.0, 1.0), (3.0, 4.0, 5.0), unit="mm", oriented=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run that holds the true warp of a pair of label images."""
    warp = smooth_field(SHAPE, 3.0, seed=1)
    fixed, moving = label_pair(SHAPE, warp, count=4)
    field = (warp.field(SHAPE) * np.array(GRID.spacing).reshape(3, 1, 1, 1)).astype(np.float32)
    run = make_run(tmp_path_factory.mktemp("pair") / "r.zarr", None, field, fixed=GRID, moving=GRID)
    return run, open_volume(fixed, grid=GRID), open_volume(moving, grid=GRID)


def dice(a, b, label):
    return 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum())


def test_the_true_warp_brings_labels_together(pair):
    run, fixed, moving = pair
    found = evaluate(run, fixed_labels=fixed, moving_labels=moving)
    f, m = fixed.data.compute(), moving.data.compute()
    moved = apply(run, moving, interpolation="label").data.compute()
    assert list(found.labels) == sorted(set(np.unique(f)) - {0})
    for label, overlap in found.labels.items():
        assert overlap.before == pytest.approx(dice(f, m, label))
        assert overlap.after == pytest.approx(dice(f, moved, label))
        assert overlap.fixed_volume == pytest.approx(2.0 * (f == label).sum())
        assert overlap.moved_volume == pytest.approx(2.0 * (moved == label).sum())
    assert found.dice[1] > 0.9 > found.dice[0]
    assert found.jacobian_statistics.folded_percent == 0
    assert 0 < found.jacobian_statistics.smallest < 1 < found.jacobian_statistics.largest


def test_labels_in_memory_are_on_the_grids_of_their_images(pair, caplog):
    _warn_of_unit_spacing.cache_clear()
    run, fixed, moving = pair
    arrays = (np.asarray(volume.data) for volume in (fixed, moving))
    assert evaluate(run, **dict(zip(("fixed_labels", "moving_labels"), arrays))) == evaluate(
        run, fixed_labels=fixed, moving_labels=moving
    )
    assert "no voxel size" not in caplog.text


def test_labels_may_be_floats_and_blocks_small(pair, monkeypatch):
    run, fixed, moving = pair
    whole = evaluate(run, fixed_labels=fixed, moving_labels=moving)
    monkeypatch.setattr("daskreg.lazy.blocks.EDGE", 11)
    floats = evaluate(run, fixed_labels=replace(fixed, data=fixed.data.astype(np.float32)), moving_labels=moving)
    assert floats == whole
    with pytest.raises(VoxelError, match=r"holds \d+\.5; labels are whole"):
        evaluate(run, fixed_labels=replace(fixed, data=fixed.data * 0.5), moving_labels=moving)


def test_large_and_negative_identities(pair):
    run, fixed, moving = pair
    far = [replace(v, data=v.data.astype(np.int64) * (2**53 + 1) * -1) for v in (fixed, moving)]
    found = evaluate(run, fixed_labels=far[0], moving_labels=far[1])
    plain = evaluate(run, fixed_labels=fixed, moving_labels=moving)
    assert {-n // (2**53 + 1): o.after for n, o in found.labels.items()} == pytest.approx(
        {n: o.after for n, o in plain.labels.items()}
    )


def test_missing_labels_are_reported_and_count_unless_in_neither(pair):
    run, fixed, moving = pair
    lost = replace(moving, data=moving.data * (moving.data != 2))
    found = evaluate(run, fixed_labels=fixed, moving_labels=lost, labels=[1, 2, 77])
    assert [found.labels[n].missing for n in (1, 2, 77)] == ["", "moving", "both"]
    assert found.dice[1] == pytest.approx((found.labels[1].after + 0) / 2)
    assert np.isnan(found.labels[77].after)
    assert any("missing in the moving image" in line for line in found.lines())
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["dice"]["labels"]["77"]["after"] is None


def test_labels_on_another_grid_are_compared_there(pair):
    run, fixed, moving = pair
    coarse = open_volume(fixed.data[::2, ::2, ::2], grid=replace(GRID, shape=(15, 17, 19), spacing=(2.0, 4.0, 2.0)).to_unit("um"))
    found = evaluate(run, fixed_labels=coarse, moving_labels=moving)
    assert found.dice[1] > 0.9
    assert found.labels[1].fixed_volume == pytest.approx(16.0 * int((coarse.data == 1).sum().compute()))


def test_a_warning_about_labels_stands_behind_their_table(tmp_path):
    fixed, moving = Grid((4, 6, 8), unit="mm"), Grid((5, 6, 7), unit="mm")
    run = make_run(tmp_path / "r.zarr", None, fixed=fixed, moving=moving)
    f, m = (open_volume(np.ones(grid.shape, np.uint8), grid=grid) for grid in (fixed, moving))
    found = evaluate(run, fixed_labels=m, moving_labels=m)
    assert found.lines()[-1].startswith("warning: array has the grid of the moving image")
    assert found.as_dict()["warnings"] == [found.lines()[-1].removeprefix("warning: ")]
    assert "warnings" not in evaluate(run, fixed_labels=f, moving_labels=m).as_dict()
    with pytest.raises(ConfigError, match="they were exchanged"):
        evaluate(run, fixed_labels=m, moving_labels=f)


def test_half_of_the_labels_are_none(pair):
    with pytest.raises(ConfigError, match="of the moving image were not"):
        evaluate(pair[0], fixed_labels=pair[1])


def test_landmarks_before_and_after(tmp_path, caplog):
    run = make_run(tmp_path / "r.zarr", affine(), displacement())
    fixed = FIXED.to_world(np.random.default_rng(0).uniform(2, 27, (50, 3)))
    moving = load_transform(run).points(fixed) + np.array([0.0, 3.0, 4.0])
    table = np.hstack([fixed[:, ::-1], moving[:, ::-1]])
    np.savetxt(tmp_path / "l.csv", table, delimiter=",", header="fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z", comments="")
    found = evaluate(run, landmarks=tmp_path / "l.csv")
    before, after = found.errors
    assert (after.mean, after.median, after.p95, after.largest) == pytest.approx((5, 5, 5, 5), abs=1e-6)
    assert before.mean == pytest.approx(np.linalg.norm(fixed - moving, axis=1).mean())
    assert (found.landmarks, found.unit) == (50, "millimeter")
    assert "50 landmarks" in "\n".join(found.lines())
    assert found.as_dict()["landmarks"]["count"] == 50
    assert "of the fixed image" not in caplog.text
    np.savetxt(tmp_path / "um.csv", table * 1000, delimiter=",")
    far = evaluate(run, landmarks=tmp_path / "um.csv")
    where = "rows 1, 2, 3, 4, 5 and 45 more"
    said = f"um.csv: 50 of 50 points lie outside of the fixed image ({where}); check --landmarks-space and the unit (mill"
    assert said in caplog.text
    assert [said in line for line in far.lines()[-2:]] == [True, False]
    assert "of the moving image" in far.lines()[-1]
    with pytest.raises(NotFound):
        evaluate(run, landmarks=tmp_path / "k.csv")


def test_without_anything_the_folds_remain(tmp_path):
    found = evaluate(make_run(tmp_path / "r.zarr", affine()))
    assert found.as_dict()["jacobian"] == {"folded_percent": 0.0, "smallest": 1.0, "largest": 1.0, "mean": 1.0}
    assert found.lines() == ["folded 0 % of voxels, Jacobian of the displacement 1.000 to 1.000, mean 1.000"]


@pytest.mark.parametrize("kind", ["affine", "field"])
def test_landmarks_and_labels_need_no_fixed_grid(pair, tmp_path, kind):
    """A bare affine of ITK names none, and neither does a chain of it and a field."""
    of_run = load_transform(pair[0])
    bare = replace(of_run, fixed=None, moving=None) if kind == "field" else Transform.of(affine(), unit="mm")
    fixed = GRID.to_world(np.random.default_rng(0).uniform(5, 25, (9, 3)))
    found = evaluate(bare, landmarks=(fixed, bare.points(fixed)))
    assert found.errors[1].largest < 1e-9
    assert found.unit == "millimeter"
    assert ("folds are not measured" in found.lines()[0]) == (kind == "field")
    assert (found.as_dict()["jacobian"] is None) == (kind == "field")
    with_labels = evaluate(bare, fixed_labels=pair[1], moving_labels=pair[2])
    assert with_labels.jacobian_statistics is not None
    if kind == "field":
        assert with_labels.as_dict() == evaluate(of_run, fixed_labels=pair[1], moving_labels=pair[2]).as_dict()


def test_landmarks_that_come_apart_may_be_exchanged(pair, caplog):
    phi = Transform.of(np.array([[1, 0, 0, 20.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), unit="mm")
    fixed = np.random.default_rng(0).uniform(5, 25, (9, 3))
    assert not evaluate(phi, landmarks=(fixed, phi.points(fixed))).warnings
    (warning,) = evaluate(phi, landmarks=(phi.points(fixed), fixed)).warnings
    assert "are 40 millimeter apart after the registration and 20 before it: are the columns of the fixed" in warning
    assert warning in caplog.text

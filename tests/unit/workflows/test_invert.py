"""The inverse on disk, with its certificate; and the map of determinants."""

import json
from dataclasses import replace

import ngff_zarr
import nibabel as nib
import numpy as np
import pytest
import zarr
from dask.distributed import Client, LocalCluster

from daskreg import Affine
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.grid import Grid, Region
from daskreg.lazy import blocks, save
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.reporting.certificate import certificate
from daskreg.storage import open_volume
from daskreg.workflows import invert as module
from daskreg.workflows.apply import apply
from daskreg.workflows.export import export
from daskreg.workflows.invert import invert
from daskreg.workflows.jacobian import jacobian
from daskreg.workflows.register import register
from tests.reference import jacobian_determinant
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run.zarr", affine(), displacement())


def test_the_report_tells_the_certificate(run, tmp_path):
    found = invert(run, tmp_path / "inverse.zarr").fixed_round_trip
    reported = certificate(tmp_path / "inverse.zarr")
    assert reported["there and back, mean"] == f"{found.mean:.2g} voxel over {found.voxels} voxels"
    assert reported["largest"] == f"{found.largest:.2g} voxel at {tuple(found.worst)} (z, y, x)"
    assert reported["beyond 0.1 voxel"] == "0 voxels"
    assert reported["back and there, mean"].startswith(f"{module_back(tmp_path / 'inverse.zarr'):.2g} voxel")
    assert "proven error" in reported


def module_back(path):
    return zarr.open_group(path).attrs["daskreg"]["certificate"]["back_and_there"]["mean"]


def test_what_has_no_certificate_is_not_taken_for_an_inverse(run, tmp_path):
    with pytest.raises(ConfigError, match="no certificate"):
        certificate(keep_transform(run, tmp_path / "same.zarr"))


def keep_transform(run, path):
    """The transform itself, in a store of its own."""
    save.write_transform(load_transform(run), path)
    return path


def test_an_inverse_is_written_with_its_certificate(run, tmp_path):
    certificate = invert(run, tmp_path / "inverse.zarr")
    found, back = certificate.fixed_round_trip, load_transform(tmp_path / "inverse.zarr")
    assert (found.voxels, found.failed) == (FIXED.size, 0)
    assert found.mean < 0.01
    assert found.largest < 0.1
    assert (back.fixed, back.moving) == (MOVING, FIXED)
    points = FIXED.to_world(np.moveaxis(np.indices(FIXED.shape), 0, -1))
    there = load_transform(run).points(points)
    error = np.linalg.norm((back.points(there) - points) @ FIXED.world_to_index[:3, :3].T, axis=-1)
    assert error.max() == pytest.approx(found.largest, abs=1e-4)
    assert error.mean() == pytest.approx(found.mean, abs=1e-5)
    assert np.unravel_index(error.argmax(), error.shape) == found.worst
    reported = json.loads((tmp_path / "inverse.zarr" / "zarr.json").read_text())["attributes"]["daskreg"]["certificate"]
    assert reported["mean"] == found.mean
    assert reported["fixed_point"]["residual"] <= 1e-3
    assert "there and back" in certificate.lines()[0]


def test_blocks_show_in_no_bit_of_the_inverse(run, tmp_path, monkeypatch):
    whole = invert(run, tmp_path / "whole.zarr")
    monkeypatch.setattr("daskreg.lazy.transform.LARGE", 16)
    monkeypatch.setattr("daskreg.storage.runs.transforms.new_array.__defaults__", (0, 16, ()))
    for place in (blocks, save, module):
        monkeypatch.setattr(place, "EDGE", 16)
    cut = invert(run, tmp_path / "cut.zarr")
    a, b = (zarr.open_array(tmp_path / name / "coordinateTransformations" / "1" / "0")[:] for name in ("whole.zarr", "cut.zarr"))
    np.testing.assert_array_equal(a, b)
    assert cut.fixed_round_trip.largest == pytest.approx(whole.fixed_round_trip.largest, abs=1e-5)


def pressed(shape=(40, 44, 42), least=0.03):
    """A displacement that presses a shell of space to ``least`` of its thickness and folds nowhere, on a grid of millimetres."""
    grid = Grid(shape, unit="mm")
    x = np.moveaxis(grid.to_world(np.moveaxis(np.indices(shape), 0, -1)) - grid.center - [0.3, 0.1, -0.2], -1, 0)
    r, radii = np.sqrt((x**2).sum(axis=0)), np.linspace(0, 60, 6001)
    slope = 1 - (1 - least) * np.exp(-(((radii - 11) / 3.5) ** 2))
    reached = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(radii))])
    return grid, (x * (np.interp(r, radii, reached) / np.maximum(r, 1e-9) - 1)).astype(np.float32)


def test_what_is_pressed_together_thirtyfold_is_solved_at_every_voxel(tmp_path):
    grid, d = pressed()
    transform = Transform.of(None, grid, d, grid)
    assert 0 < transform.determinant().min() < 0.05
    found = invert(transform, tmp_path / "i.zarr")
    assert (found.solved.unsolved, found.solved.unsolved_boxes, found.folded) == (0, (), 0)
    assert found.solved.residual < 1e-3
    assert found.moving_round_trip.mean < 0.01
    assert found.moving_round_trip.largest < 0.5
    assert 20_000 < found.moving_round_trip.voxels < grid.size
    finer = invert(transform, tmp_path / "finer.zarr", upsampling=3)
    assert finer.fixed_round_trip.mean < 0.5 * found.fixed_round_trip.mean  # what is left is what interpolation leaves
    assert "compressed up to" in found.warnings()[-1]


def test_points_come_back_from_where_space_is_pressed_together():
    grid, d = pressed()
    transform = Transform.of(None, grid, d, grid)
    points = grid.to_world(np.random.default_rng(0).uniform(0, np.array(grid.shape) - 1, (3000, 3)))
    found, left = transform.sources(transform.points(points))
    assert left.max() < 1e-3
    assert np.abs(found - points).max() < 0.02


def test_a_source_inside_the_grid_goes_before_one_beyond_it():
    grid = Grid((24, 24, 24), unit="mm")
    d = np.zeros((3, *grid.shape), np.float32)
    d[0] = np.linspace(-4, 0.3, 24)[:, None, None]  # what leaves the grid is its own source as well
    points = np.random.default_rng(0).uniform(0, 23, (2000, 3))
    transform = Transform.of(None, grid, d, grid)
    found, left = transform.sources(transform.points(points))
    assert left.max() < 1e-3
    assert np.abs(found - points).max() < 1e-2


def test_blocks_show_in_no_bit_where_newton_is_needed(tmp_path, monkeypatch):
    grid, d = pressed()
    field = Transform.of(None, grid, d, grid).inverse().links[-1].displacement
    whole = field.solve(Region((0, 0, 0), field.grid.shape))[0]
    monkeypatch.setattr("daskreg.lazy.transform.LARGE", 16)
    cut = Transform.of(None, grid, d, grid).inverse().links[-1].displacement
    for box in field.grid.region.split(13):
        np.testing.assert_array_equal(cut.solve(box)[0], whole[(slice(None), *box.slices)])


def test_voxels_without_a_solution_are_counted_and_boxed(tmp_path):
    grid = Grid((24, 24, 24), unit="mm")
    d = np.zeros((3, *grid.shape), np.float32)
    d[0, :12], d[0, 12:] = -3.0, 3.0  # tears space apart: nothing comes to lie between but the one layer of cells
    d[2, 8:16, 8:16, 8:12] = 6  # and jumps over what lies behind
    found = invert(Transform.of(None, grid, d, grid), tmp_path / "i.zarr")
    assert found.folded > 0
    assert (found.solved.unsolved > 0) == bool(found.solved.unsolved_boxes)
    reported = zarr.open_group(tmp_path / "i.zarr").attrs["daskreg"]["certificate"]
    assert reported["folded_voxels"] == found.folded
    assert reported["fixed_point"]["unsolved_voxels"] == found.solved.unsolved
    assert any("fold" in line for line in found.warnings())


def test_where_it_fails_is_said(tmp_path, caplog):
    grid = Grid((24, 24, 24), unit="mm")
    d = np.zeros((3, *grid.shape), np.float32)
    d[2, 8:16, 8:16, 8:12] = 6  # jumps over what lies behind
    certificate = invert(Transform.of(None, grid, d), tmp_path / "i.zarr")
    assert certificate.fixed_round_trip.failed > 0
    assert certificate.solved.unproven > 0
    assert "folds have no inverse" in " ".join(certificate.warnings())
    assert "folds" in caplog.text
    reported = zarr.open_group(tmp_path / "i.zarr").attrs["daskreg"]["certificate"]["beyond_limit_within"]
    assert reported["start"] >= [4, 4, 4]


def test_affine_chains_invert_without_a_field(tmp_path):
    certificate = invert(Transform.of(affine(), FIXED, None, MOVING), tmp_path / "i.zarr")
    assert certificate.solved is None
    assert certificate.fixed_round_trip.largest < 1e-4
    np.testing.assert_allclose(load_transform(tmp_path / "i.zarr").affine, np.linalg.inv(affine()), atol=1e-12)
    with pytest.raises(ConfigError, match="singular"):
        invert(Transform.of(np.diag([1.0, 1, 0, 1])), tmp_path / "j.zarr")
    with pytest.raises(OutputExists):
        invert(Transform.of(affine()), tmp_path / "i.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.zarr"]


@pytest.mark.parametrize("name", ["j.ome.zarr", "j.nii.gz"])
def test_the_map_of_determinants_is_the_reference_and_counts_folds(tmp_path, name):
    grid = Grid((20, 22, 18), (2.0, 1.0, 0.5), unit="mm", oriented=True)
    u = np.random.default_rng(0).normal(0, 0.4, (3, *grid.shape))
    transform = Transform.of(np.diag([1.1, 1, 1, 1]), grid, u * np.array(grid.spacing).reshape(3, 1, 1, 1))
    found, wanted = jacobian(transform, tmp_path / name), 1.1 * jacobian_determinant(u)
    np.testing.assert_allclose(open_volume(tmp_path / name).data.compute(), wanted, atol=2e-5)
    assert found.folded == (wanted <= 0).sum() > 0
    assert found.jacobian_statistics.smallest == pytest.approx(wanted.min(), abs=1e-4)
    assert "Jacobian of the map" in found.line()
    assert "Jacobian of the displacement" in replace(found, part="warp").line()
    assert f"{found.folded} of {grid.size} voxels fold" in found.line()


def test_the_determinant_on_another_grid_is_in_world_units(run, tmp_path):
    like = Grid((12, 14, 16), (4.0, 3.5, 2.5), tuple(FIXED.to_world((3, 3, 3))), FIXED.direction, "mm", True)
    jacobian(run, tmp_path / "coarse.nii", like=like)
    fine = load_transform(run).jacobian().compute()
    values = np.asarray(nib.load(tmp_path / "coarse.nii").dataobj).T
    at = np.rint(FIXED.to_index(like.to_world(np.moveaxis(np.indices(like.shape), 0, -1)))).astype(int)
    inside = ((at > 2) & (at < np.array(FIXED.shape) - 3)).all(axis=-1)
    near = fine[tuple(np.moveaxis(np.where(inside[..., None], at, 3), -1, 0))]
    assert inside.sum() > 200
    assert np.abs(values - near)[inside].mean() < 0.05


def test_finer_voxels_leave_half_of_the_error(run, tmp_path):
    coarse = invert(run, tmp_path / "coarse.zarr").fixed_round_trip
    fine = invert(run, tmp_path / "fine.zarr", upsampling=2).fixed_round_trip
    assert fine.mean < 0.6 * coarse.mean
    assert fine.largest < 0.7 * coarse.largest
    grids = [load_transform(tmp_path / name).links[-1].displacement_grid for name in ("coarse.zarr", "fine.zarr")]
    assert grids[1].shape == tuple(2 * n - 1 for n in grids[0].shape)
    np.testing.assert_allclose(grids[1].corners(), grids[0].corners(), atol=1e-9)
    with pytest.raises(ConfigError, match="upsampling is 0"):
        invert(run, tmp_path / "x.zarr", upsampling=0)


def test_both_ways_are_one_bijection(run, tmp_path):
    invert(run, tmp_path / "pair.zarr", both=True)
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "pair.zarr"), validate=True)
    (reported,) = scene.coordinateTransformations
    assert reported.type == "bijection"
    back, points = load_transform(tmp_path / "pair.zarr"), FIXED.center[None] + np.eye(3) * 5
    np.testing.assert_allclose(back.points(load_transform(run).points(points)), points, atol=0.05)
    group = zarr.open_group(tmp_path / "pair.zarr", mode="r+")
    ome = group.attrs["ome"]
    bijection = ome["scene"]["coordinateTransformations"][0]
    ome["scene"]["coordinateTransformations"][0] = {
        **bijection["inverse"],
        "input": {"name": "moving"},
        "output": {"name": "fixed"},
    }
    group.attrs.put({"ome": ome})
    np.testing.assert_allclose(
        load_transform(tmp_path / "pair.zarr").points(points), load_transform(run).points(points), atol=1e-4
    )


def test_workers_of_a_cluster_write_the_same_bits(run, tmp_path, monkeypatch):
    invert(run, tmp_path / "here.zarr")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        invert(run, tmp_path / "there.zarr")
    a, b = (zarr.open_array(tmp_path / n / "coordinateTransformations" / "1" / "0")[:] for n in ("here.zarr", "there.zarr"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["inverse.nii.gz", "inverse.h5", "inverse"])
def test_a_store_is_not_given_the_name_of_a_file(run, tmp_path, name):
    with pytest.raises(OutputError, match=r"kept as \.zarr"):
        invert(run, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_an_input_is_refused_before_anything_goes(tmp_path):
    run = make_run(tmp_path / "run.zarr", affine(), displacement())
    image = tmp_path / "run.zarr" / "transform" / "displacement"
    before = load_transform(run).points(FIXED.center)
    tries = [
        lambda: invert(tmp_path / "run.zarr", tmp_path / "run.zarr", overwrite=True),
        lambda: invert(run, tmp_path / "run.zarr", overwrite=True),
        lambda: jacobian(run, tmp_path / "run.zarr", overwrite=True),
        lambda: export(tmp_path / "run.zarr", f"{tmp_path}/./run.zarr", overwrite=True),
        lambda: apply(run, f"{image}::channel=0", tmp_path / "run.zarr", overwrite=True),
        lambda: apply(Transform.of(affine()), f"{image}::channel=0", tmp_path / "run.zarr", like=FIXED, overwrite=True),
        lambda: register(f"{image}::channel=0", f"{image}::channel=1", [Affine()], output=tmp_path / "run.zarr", overwrite=True),
    ]
    for attempt in tries:
        with pytest.raises(OutputError, match="is, or holds, an input"):
            attempt()
    np.testing.assert_array_equal(load_transform(tmp_path / "run.zarr").points(FIXED.center), before)

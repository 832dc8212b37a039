"""Scenes with the fixed and the moving archive linked below them: ngff-zarr starts from the scene and lands where we do."""

import hashlib
from dataclasses import replace
from pathlib import Path

import ngff_zarr
import numpy as np
import pytest
import zarr

from daskreg.errors import ConfigError, OutputError, UnitsError, Unreadable
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, open_volume, write_image
from daskreg.storage.runs.scenes import find_image
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.export import export
from daskreg.workflows.info import describe
from tests.phantoms import rotation, smooth_field

TURN = tuple(map(tuple, rotation((5, -8, 12))))
FIXED = Grid((30, 36, 33), (3.0, 3.2, 3.6), (-20.0, -40.0, 10.0), TURN, "mm", True)


def checksums(*folders):
    files = sorted(p for f in folders for p in Path(f).rglob("*") if p.is_file())
    return {p: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def warp(fixed, moving):
    """Affine behind a smooth field that is large enough to matter."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation((2, 4, -3)) @ np.diag([1.04, 0.97, 1.0])
    matrix[:3, 3] = fixed.center - matrix[:3, :3] @ fixed.center + [2.0, -3.0, 1.5]
    u = smooth_field(fixed.shape, 2.0, seed=3).field(fixed.shape)
    d = np.einsum("rc,czyx->rzyx", fixed.index_to_world[:3, :3], u).astype(np.float32)
    return Transform.of(matrix, fixed, d, moving)


@pytest.fixture
def archives(tmp_path):
    """The bundled head as two float OME-Zarr archives, obliquely cut along the same axes, in a folder of their own."""
    head = open_volume(demo_pair(3)[1])
    head = replace(head, data=head.data.astype(np.float32))
    folder = tmp_path / "archives"
    folder.mkdir()
    places = []
    for name, grid in (("fixed", FIXED), ("moving", replace(FIXED, shape=(40, 44, 42), origin=(-30.0, -50.0, -5.0)))):
        write_image(folder / f"{name}.ome.zarr", Transform.of(grid=grid).apply(head), grid)
        places.append(folder / f"{name}.ome.zarr")
    return places


def test_ngff_zarr_resamples_from_the_scene_as_daskreg_does_and_archives_are_unchanged(archives, tmp_path):
    fixed, moving = map(open_volume, archives)
    before = checksums(*archives)
    transform = warp(fixed.grid, moving.grid)
    export(transform, tmp_path / "scene.zarr", fixed=archives[0], moving=archives[1], one_field=True)
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "scene.zarr"), validate=True)
    (reported,) = scene.coordinateTransformations
    ends = [scene.images[end.path].images[0] for end in (reported.input, reported.output)]
    field = ngff_zarr.from_ome_zarr(str(tmp_path / "scene.zarr" / reported.path), validate=True).images[0]
    theirs = np.asarray(ngff_zarr.resample(reported, *ends, fields={reported.path: field}).data)
    ours = transform.apply(moving).compute()
    at = moving.grid.to_index(transform.points(fixed.grid.to_world(np.moveaxis(np.indices(fixed.shape), 0, -1))))
    inside = ((at > 0) & (at < np.array(moving.shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.5
    assert np.abs(theirs - ours)[inside].max() < 1e-3 * np.ptp(ours)
    assert checksums(*archives) == before
    export(transform, tmp_path / "scene.zarr", fixed=archives[0], moving=archives[1], overwrite=True)
    assert checksums(*archives) == before


@pytest.mark.parametrize("one_field", [True, False])
def test_a_scene_is_read_from_its_ngff_metadata_alone(archives, tmp_path, one_field):
    fixed, moving = map(open_volume, archives)
    transform = warp(fixed.grid, moving.grid)
    export(transform, tmp_path / "scene.zarr", fixed=archives[0], moving=archives[1], one_field=one_field)
    group = zarr.open_group(tmp_path / "scene.zarr", mode="r+")
    group.attrs.put({"ome": group.attrs["ome"]})  # what another program would have written
    back = load_transform(tmp_path / "scene.zarr")
    assert (back.fixed.shape, back.moving.shape, back.unit) == (fixed.shape, moving.shape, "millimeter")
    points = FIXED.to_world(np.random.default_rng(0).uniform(0, np.array(FIXED.shape) - 1, (100, 3)))
    np.testing.assert_allclose(back.points(points), transform.points(points), atol=0.05 if one_field else 1e-4)


def test_links_are_relative_and_move_with_their_archives(archives, tmp_path):
    export(Transform.of(np.eye(4), FIXED), tmp_path / "archives" / "scene.zarr", fixed=archives[0], moving=archives[1])
    (tmp_path / "archives").rename(tmp_path / "elsewhere")
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "elsewhere" / "scene.zarr"), validate=True)
    assert sorted(scene.images) == ["fixed.ome.zarr", "moving.ome.zarr"]


def with_channels(path, axes, shape=(20, 22, 24)):
    grid = Grid(shape, (2.0, 1.0, 1.0), unit="mm")
    write_image(path, np.zeros((*(2 for _ in axes), *shape), np.uint8), grid, axes=axes)
    return path, grid


@pytest.mark.parametrize(("first", "second"), [(("c",), ("c",)), ((), ("c",)), (("t", "c"), ()), (("t", "c"), ("c",))])
def test_images_of_channels_are_linked_validly(tmp_path, first, second):
    fixed, grid = with_channels(tmp_path / "f.ome.zarr", first)
    moving, _ = with_channels(tmp_path / "m.ome.zarr", second)
    export(warp(grid, grid), tmp_path / "scene.zarr", fixed=fixed, moving=f"{moving}::level=0")
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "scene.zarr"), validate=True)
    assert scene.coordinateTransformations[0].type == ("byDimension" if first == second else "sequence")


def finished(path, fixed, moving, grid, **recipe):
    run = RunStore.create(path, fixed=grid, moving=grid, recipe={"fixed": str(fixed), "moving": str(moving), **recipe})
    run.finish({})
    return run


def test_a_run_knows_its_archives_and_links_what_can_be_linked(archives, tmp_path, caplog):
    run = finished(tmp_path / "run.zarr", archives[0], archives[1], FIXED)
    export(run, tmp_path / "a.zarr", images=True)
    assert (tmp_path / "a.zarr" / "moving.ome.zarr").resolve() == archives[1]
    reported = describe(tmp_path / "a.zarr")
    assert reported.images == (str(archives[0]), str(archives[1]))
    assert f"moving at  {archives[1]}" in reported.lines()
    mixed = finished(tmp_path / "mixed.zarr", archives[0] / "0", demo_pair(3)[1], FIXED)  # an array in the archive is its image
    export(mixed, tmp_path / "b.zarr", images=True)
    assert "the moving image is not linked" in caplog.text
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "b.zarr"), validate=True)
    assert list(scene.images) == ["fixed.ome.zarr"]
    assert load_transform(tmp_path / "b.zarr").fixed == FIXED


def test_what_cannot_be_linked_is_refused(archives, tmp_path):
    run = finished(tmp_path / "run.zarr", demo_pair(3)[0], demo_pair(3)[1], FIXED)
    spaced = finished(tmp_path / "spaced.zarr", archives[0], archives[1], FIXED, spacing=[1, 1, 1])
    bare = Transform.of(np.eye(4), FIXED)
    zarr.create_array(str(tmp_path / "bare.zarr"), shape=(4, 4, 4), dtype="u1")
    tries = [
        (lambda: export(run, tmp_path / "s.zarr", images=True), ConfigError, "none of the images"),
        (lambda: export(spaced, tmp_path / "s.zarr", images=True), ConfigError, "none of the images"),
        (lambda: export(bare, tmp_path / "s.zarr", images=True), ConfigError, "does not know its images"),
        (lambda: export(bare, tmp_path / "s.h5", fixed=archives[0]), ConfigError, "which is a .zarr"),
        (lambda: export(bare, tmp_path / "s.zarr", fixed=demo_pair(3)[0]), ConfigError, "OME-Zarr archives of this file system"),
        (lambda: export(bare, tmp_path / "s.zarr", fixed=tmp_path / "bare.zarr"), ConfigError, "multiscales"),
        (lambda: export(bare, archives[0], fixed=archives[0], overwrite=True), OutputError, "is, or holds, an input"),
        (lambda: export(bare, archives[0] / "s.zarr", fixed=archives[0]), OutputError, "a circle"),
        (lambda: find_image("fixed", f"{archives[0]}::unit=um"), ConfigError, "as it is"),
        (lambda: find_image("fixed", archives[0]).to_world(None), UnitsError, "no unit"),
    ]
    for attempt, error, match in tries:
        with pytest.raises(error, match=match):
            attempt()
    assert not (tmp_path / "s.zarr").exists()


def test_a_scene_that_points_outside_itself_is_not_followed(archives, tmp_path):
    export(Transform.of(np.eye(4), FIXED), tmp_path / "scene.zarr", fixed=archives[0])
    group = zarr.open_group(tmp_path / "scene.zarr", mode="r+")
    ome = group.attrs["ome"]
    ome["scene"]["coordinateTransformations"][0]["input"]["path"] = "../archives/fixed.ome.zarr"
    group.attrs.put({"ome": ome})
    with pytest.raises(Unreadable, match="a path below the scene"):
        load_transform(tmp_path / "scene.zarr")

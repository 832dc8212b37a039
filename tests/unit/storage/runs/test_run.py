"""A RUN.zarr is complete or visibly not."""

import errno
import json
import os
import pickle
from pathlib import Path

import ngff_zarr
import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from daskreg.errors import IncompleteRun, NotFound, OutOfSpace, OutputError, OutputExists, Unreadable
from daskreg.grid import Grid, Region
from daskreg.storage import RunStore, open_volume

TURNED = ((0.0, 0.6, 0.8), (0.0, -0.8, 0.6), (1.0, 0.0, 0.0))
FIXED = Grid((70, 40, 100), (2.0, 1.0, 1.0), (5.0, -6.0, 7.0), TURNED, "um", True)
MOVING = Grid((30, 40, 50), unit="um")
FIELD = "transform/displacement"


def started(path, **options):
    run = RunStore.create(path, fixed=FIXED, moving=MOVING, **options)
    run.create_image("moved", FIXED)
    run.create_image(FIELD, FIXED, components=3)
    return run


def finished(run, provenance=None):
    run.write("moved", FIXED.region, np.zeros(FIXED.shape, np.float32))
    run.write(FIELD, FIXED.region, np.zeros((3, *FIXED.shape), np.float32))
    return run.finish(provenance or {})


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    return str(tmp_path / "run.zarr") if request.param == "local" else f"memory://{tmp_path.name}/run.zarr"


def test_what_is_written_is_read_back(path):
    rng = np.random.default_rng(0)
    moved, field = rng.random(FIXED.shape, np.float32), rng.random((3, *FIXED.shape), np.float32)
    run, affine = started(path), np.diag([1.0, 2.0, 3.0, 1.0])
    worker = pickle.loads(pickle.dumps(run)) if not path.startswith("memory") else RunStore.attach(path)
    for z in (Region((0, 0, 0), (64, 40, 100)), Region((64, 0, 0), (70, 40, 100))):
        worker.write("moved", z, moved[z.slices])
        worker.write(FIELD, z, field[(slice(None), *z.slices)])
    run.set_affine(affine)
    run.build_pyramid("moved")
    run.build_pyramid(FIELD)
    run.finish({"loss": np.float32(0.5), "bad": float("nan"), "shape": (1, 2)})
    back = RunStore.open(path)
    assert back.provenance == {"loss": 0.5, "bad": None, "shape": [1, 2]}
    assert (back.fixed_grid, back.moving_grid) == (FIXED, MOVING)
    assert back.fixed_grid.oriented
    np.testing.assert_array_equal(back.affine, affine)
    np.testing.assert_array_equal(back.read_image("moved").read(), moved)
    np.testing.assert_allclose(back.displacement().compute(), field, atol=1e-6)  # turned to the grid and back
    coarse = back.displacement(1).compute()
    np.testing.assert_allclose(coarse[:, 0, 0, 0], field[:, 0, :2, :2].mean((1, 2)), rtol=1e-5)
    assert back.displacement_grid(1) == FIXED.coarsen((1, 2, 2)) == back.read_image("moved", 1).grid
    assert open_volume(f"{path}/moved::level=1").grid == FIXED.coarsen((1, 2, 2))
    assert open_volume(f"{path}/{FIELD}::channel=2").grid == FIXED


def test_images_of_a_run_are_valid_ngff(tmp_path):
    run = started(tmp_path / "r.zarr")
    run.write("moved", FIXED.region, np.zeros(FIXED.shape, np.float32))
    run.build_pyramid("moved")
    finished(run)
    Image.from_zarr(zarr.open_group(str(tmp_path / "r.zarr"))["moved"])
    field = ngff_zarr.from_ome_zarr(str(tmp_path / "r.zarr" / FIELD), validate=True)
    assert tuple(field.images[0].dims) == ("c", "z", "y", "x")
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "r.zarr"), validate=True)
    assert [t.type for t in scene.coordinateTransformations] == ["sequence"]


def test_a_run_without_a_finish_is_incomplete(path):
    started(path)
    with pytest.raises(IncompleteRun, match=r"started 20.*still going.*wait for it, or stop it"):
        RunStore.open(path)
    assert not RunStore.attach(path).complete


def test_a_run_whose_process_is_gone_died(tmp_path):
    started(tmp_path / "r.zarr")
    meta = tmp_path / "r.zarr" / "zarr.json"
    tree = json.loads(meta.read_text())
    tree["attributes"]["daskreg"]["pid"] = 2**22 + 1  # beyond what Linux hands out
    meta.write_text(json.dumps(tree))
    with pytest.raises(IncompleteRun, match="died"):
        RunStore.open(tmp_path / "r.zarr")


def test_runs_are_not_overwritten_without_overwrite(path):
    started(path)
    with pytest.raises(OutputExists, match=r"an incomplete run.*--overwrite"):
        started(path)
    finished(RunStore.attach(path))
    with pytest.raises(OutputExists, match=r"a complete run.*--overwrite"):
        started(path)
    finished(started(path, overwrite=True), {"second": True})
    assert RunStore.open(path).provenance == {"second": True}


def test_folders_of_others_are_not_deleted(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("x")
    with pytest.raises(OutputExists, match=r"neither image nor run, .* name a store in it"):
        started(tmp_path / "data")
    with pytest.raises(OutputError, match="remove it"):
        started(tmp_path / "data", overwrite=True)
    with pytest.raises(OutputError, match="create it first"):
        started(tmp_path / "none" / "r.zarr")


@pytest.mark.parametrize(
    ("start", "stop"),
    [((1, 0, 0), (64, 40, 100)), ((0, 0, 0), (63, 40, 100)), ((0, 0, 0), (71, 40, 100)), ((0, 0, 0), (0, 40, 100))],
)
def test_a_writer_owns_whole_chunks(tmp_path, start, stop):
    r = Region(start, stop)
    with pytest.raises(ValueError, match="whole chunks"):
        started(tmp_path / "r.zarr").write("moved", r, np.zeros(r.shape, np.float32))


def test_voxels_of_another_shape_raise_value_error(tmp_path):
    run = started(tmp_path / "r.zarr")
    with pytest.raises(ValueError, match="shape"):
        run.write(FIELD, FIXED.region, np.zeros(FIXED.shape, np.float32))
    with pytest.raises(ValueError, match="finite"):
        run.set_affine(np.full((4, 4), np.nan))


def test_a_disk_too_full_for_metadata_is_out_of_space(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = started(tmp_path / "r.zarr")
    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(OutOfSpace, match="free space"):
        run.create_image("other", FIXED)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_too_full_for_a_chunk_is_out_of_space(tmp_path):
    run = started(tmp_path / "r.zarr")
    chunk = tmp_path / "r.zarr/moved/0/c/0/0/0"
    chunk.parent.mkdir(parents=True)
    chunk.symlink_to("/dev/full")
    with pytest.raises(OutOfSpace, match="free space"):
        run.write("moved", FIXED.region, np.random.default_rng(0).random(FIXED.shape, np.float32))


def test_a_folder_that_may_not_be_written_to_is_an_output_error(tmp_path):
    run = started(tmp_path / "r.zarr")
    (tmp_path / "r.zarr/moved/0/c").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        run.write("moved", FIXED.region, np.ones(FIXED.shape, np.float32))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(NotFound):
        RunStore.open(tmp_path / "none.zarr")
    zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    with pytest.raises(Unreadable, match="not a daskreg run"):
        RunStore.open(tmp_path / "g.zarr")
    finished(started(tmp_path / "r.zarr"))
    with pytest.raises(Unreadable, match=r"r\.zarr/moved"):
        open_volume(tmp_path / "r.zarr")
    with pytest.raises(NotFound, match="no image"):
        RunStore.open(tmp_path / "r.zarr").read_image("sharpened")


def test_a_run_of_a_later_format_is_refused(tmp_path):
    started(tmp_path / "r.zarr")
    root = zarr.open_group(str(tmp_path / "r.zarr"))
    root.attrs["daskreg"] = {**root.attrs["daskreg"], "format": 9}
    with pytest.raises(Unreadable, match="format 9"):
        RunStore.attach(tmp_path / "r.zarr")

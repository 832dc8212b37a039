"""The output of a registration: one process writes it, the older one stays until the new one is complete, nothing is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import daskreg
from daskreg import MSE, Deformable
from daskreg.config import Config
from daskreg.errors import ConfigError, DaskregError, OutputBusy, OutputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, RunStore, open_volume, write_image
from tests.phantoms import known_warp_pair

pytestmark = pytest.mark.usefixtures("without_verdicts")
SHAPE = (20, 18, 16)
STAGES = [Deformable(similarity=MSE(), scales=(2, 1), iterations=(5, 30), tolerance=0)]
LONG = [STAGES[0].model_copy(update={"iterations": (5, 1000)})]  # goes on while another thread acts
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    fixed, moving, _ = known_warp_pair(SHAPE, 2.0, 0)
    for name, voxels in (("fixed", fixed), ("moving", moving)):
        write_image(folder / f"{name}.zarr", voxels, Grid(voxels.shape))
    return folder


def register(images, path, stages=STAGES, **options):
    given = {"output": path, "workers": 1, "checkpoint": 0.0, **options}
    return daskreg.register(str(images / "fixed.zarr"), str(images / "moving.zarr"), stages, **given)


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    return register(images, tmp_path_factory.mktemp("undisturbed") / "run.zarr")


def same(a, b):
    np.testing.assert_array_equal(a.displacement.compute(), b.displacement.compute())
    np.testing.assert_array_equal(a.moved.read(), b.moved.read())


class Once:
    """Acts once, at the first iteration of the last level from the second on."""

    def __init__(self, act):
        self.act, self.outcome = act, None

    def __call__(self, progress):
        if self.outcome is None and progress.scale == 1 and progress.iteration > 1:
            self.outcome = "begun"
            try:
                self.act()
                self.outcome = "acted"
            except DaskregError as error:
                self.outcome = error


@pytest.fixture(scope="module")
def affine_run(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("affine") / "run.zarr"
    return daskreg.register(str(images / "fixed.zarr"), str(images / "moving.zarr"), [daskreg.Affine()], output=path).path


@pytest.fixture
def older(affine_run, tmp_path):
    """A complete run of another recipe."""
    return RunStore.open(shutil.copytree(affine_run, tmp_path / "run.zarr"))


@pytest.mark.parametrize("options", [{"overwrite": True}, pytest.param({"resume": True}, marks=pytest.mark.slow)])
def test_a_run_in_progress_is_neither_overwritten_nor_resumed(images, undisturbed, tmp_path, options):
    path = tmp_path / "run.zarr"
    second = Once(lambda: register(images, path, **options))
    found = register(images, path, progress=second)
    assert isinstance(second.outcome, OutputBusy)
    assert f"is being written by another process (process {os.getpid()}" in str(second.outcome)
    same(found, undisturbed)
    assert os.listdir(tmp_path) == ["run.zarr"]


def test_during_an_overwrite_the_older_run_can_be_read(images, undisturbed, older):
    voxels, read = older.read_image("moved").read(), []
    watch = Once(lambda: read.append(RunStore.open(older.path).read_image("moved").read()))
    found = register(images, older.path, overwrite=True, progress=watch)
    np.testing.assert_array_equal(read[0], voxels)
    same(found, undisturbed)


def test_an_overwrite_that_fails_leaves_the_older_run_and_can_be_resumed(images, undisturbed, older, tmp_path):
    voxels = older.read_image("moved").read()
    with pytest.raises(KeyboardInterrupt) as caught:  # progress is reported by another thread
        register(images, older.path, overwrite=True, progress=Once(lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert f"--resume -o {older.path}" in str(caught.value.__notes__)
    np.testing.assert_array_equal(RunStore.open(older.path).read_image("moved").read(), voxels)
    taken = CheckpointStore(str(tmp_path / ".run.zarr.new")).latest()[1]["seconds"]
    found = daskreg.register(output=older.path, resume=True)
    same(found, undisturbed)
    seconds = found.report["seconds"]
    assert seconds["earlier"] == taken > 0
    assert seconds["total"] > taken + seconds["optimise"]
    assert "earlier" not in undisturbed.report["seconds"]
    assert os.listdir(tmp_path) == ["run.zarr"]


def test_ctrl_c_in_python_writes_a_checkpoint_where_the_run_outlives_the_call(images, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for output in (tmp_path / "run.zarr", None):
        with pytest.raises(KeyboardInterrupt) as caught:
            register(images, output, LONG, checkpoint=1e6, progress=Once(lambda: os.kill(os.getpid(), signal.SIGINT)))
        if output:
            assert "resume=True" in str(caught.value.__notes__)
            assert len(CheckpointStore(str(output)).latest()[1]["losses"]) > 1
    assert not hasattr(caught.value, "__notes__")  # a temporary run ends with the process
    assert [p.name for p in tmp_path.rglob("*.zarr")] == ["run.zarr"]


@pytest.mark.parametrize(
    ("checkpoint", "overwrite"),
    [
        (0.0, False),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param(0.0, True, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_removed_meanwhile_says_so_and_leaves_nothing(images, tmp_path, checkpoint, overwrite):
    path = tmp_path / "run.zarr"
    if overwrite:
        register(images, path)
    place = tmp_path / (".run.zarr.new" if overwrite else "run.zarr")
    with pytest.raises(OutputError, match=rf"{path} was removed while the run wrote to it"):
        register(images, path, LONG, checkpoint=checkpoint, overwrite=overwrite, progress=Once(lambda: shutil.rmtree(place)))
    assert os.listdir(tmp_path) == (["run.zarr"] if overwrite else [])
    if overwrite:
        assert RunStore.open(path).complete


def test_an_input_that_lacks_a_chunk_is_refused_at_the_start_unless_it_is_said_to_be_sparse(images, tmp_path, caplog):
    shutil.copytree(images / "moving.zarr", tmp_path / "moving.zarr")
    moving, path = str(tmp_path / "moving.zarr"), tmp_path / "run.zarr"
    write_image(tmp_path / "large.zarr", np.ones((70, 18, 16), np.float32), Grid((70, 18, 16)))
    os.unlink(tmp_path / "large.zarr/0/c/1/0/0")
    with pytest.raises(Unreadable, match=r"large\.zarr: the chunk c/1/0/0 is missing, and 1 of 2 chunks are"):
        daskreg.register(str(tmp_path / "large.zarr"), moving, STAGES, output=path, checkpoint=None)
    assert not path.exists()
    given = f"{tmp_path}/large.zarr::missing=fill"
    found = daskreg.register(given, moving, [daskreg.Moments()], output=path)
    assert "1 of 2 chunks are missing (the first is c/1/0/0), and are read as 0" in caplog.text
    assert found.moved.shape == (70, 18, 16)


def test_an_input_whose_chunk_disappears_leaves_no_hole_and_the_run_continues_when_it_is_back(images, undisturbed, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    path, chunk = tmp_path / "run.zarr", tmp_path / "images/moving.zarr/0/c/0/0/0"
    with pytest.raises(Unreadable, match=r"moving\.zarr: the chunk c/0/0/0 is missing") as caught:
        register(tmp_path / "images", path, progress=Once(lambda: os.rename(chunk, tmp_path / "aside")))
    assert f"--resume -o {path}" in str(caught.value.__notes__)
    os.rename(tmp_path / "aside", chunk)
    same(daskreg.register(output=path, resume=True), undisturbed)


def test_two_processes_apply_to_one_output_and_one_is_refused(images, undisturbed, tmp_path):
    output, lines = tmp_path / "moved.ome.zarr", []
    command = [sys.executable, "-m", "daskreg.cli", "apply", undisturbed.path, str(images / "moving.zarr"), "-o", str(output)]
    children = [
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    lines = [child.communicate(timeout=240)[1].decode() for child in children]
    assert sorted(child.returncode for child in children) == [0, 2], lines
    refused = "".join(lines)
    assert "is being written by another process" in refused or "exists already" in refused
    assert "Traceback" not in refused
    np.testing.assert_array_equal(open_volume(output).read(), undisturbed.moved.read())
    assert os.listdir(tmp_path) == ["moved.ome.zarr"]


def test_an_overwrite_that_is_killed_leaves_the_older_run_and_can_be_resumed(images, undisturbed, older, tmp_path):
    voxels, recipe = older.read_image("moved").read(), tmp_path / "recipe.yaml"
    recipe.write_text(Config.of_stages(LONG).dump())
    arguments = [images / "fixed.zarr", images / "moving.zarr", "-o", older.path, "--overwrite", "--config", recipe]
    command = [sys.executable, "-m", "daskreg.cli", "register", *map(str, arguments), "--checkpoint-every", "0"]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True)
    place, end = tmp_path / ".run.zarr.new", time.monotonic() + 240
    while CheckpointStore(str(place)).latest() is None and child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(OutputBusy, match=rf"process {child.pid} on"):
        register(images, older.path, overwrite=True)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    np.testing.assert_array_equal(RunStore.open(older.path).read_image("moved").read(), voxels)
    assert CheckpointStore(str(place)).latest() is not None
    same(register(images, older.path, overwrite=True), undisturbed)
    assert sorted(os.listdir(tmp_path)) == ["recipe.yaml", "run.zarr"]


# --- the inputs of a run that is continued ----------------------------------------------------------------------------------


@pytest.fixture
def interrupted(images, tmp_path):
    """A run that stopped with a checkpoint, of images of its own."""
    shutil.copytree(images, tmp_path / "images")
    with pytest.raises(KeyboardInterrupt):
        register(tmp_path / "images", tmp_path / "run.zarr", progress=Once(lambda: os.kill(os.getpid(), signal.SIGINT)))
    return tmp_path / "run.zarr"


def resumed(path, *images, **options):
    return daskreg.register(*map(str, images), output=path, resume=True, workers=1, **options)


def test_a_run_continues_only_from_the_images_that_it_was_started_from(images, undisturbed, interrupted, tmp_path, caplog):
    moving = tmp_path / "images/moving.zarr"
    before = RunStore.attach(interrupted).state
    with pytest.raises(ConfigError, match=rf"another moving image: {moving}, not {images}/moving\.zarr\. .*--inputs-changed"):
        resumed(interrupted, tmp_path / "images/fixed.zarr", images / "moving.zarr")
    voxels = open_volume(moving).read()
    write_image(moving, voxels[::-1], Grid(SHAPE), overwrite=True)
    with pytest.raises(ConfigError, match=rf"another moving image: {moving} has changed since, its (content|size)"):
        resumed(interrupted)
    assert RunStore.attach(interrupted).state == before
    shutil.copytree(interrupted, tmp_path / "other.zarr")
    mixed = resumed(tmp_path / "other.zarr", inputs_changed=True)
    assert f"continuing with another moving image: {moving} has changed since, its " in caplog.text
    assert "the result is of both" in caplog.text
    assert (mixed.moved.read() != undisturbed.moved.read()).any()
    write_image(moving, voxels, Grid(SHAPE), overwrite=True)
    same(resumed(interrupted), undisturbed)


def test_inputs_that_change_while_a_run_reads_them_are_recorded(images, tmp_path, caplog):
    shutil.copytree(images, tmp_path / "images")
    voxels = zarr.open_array(str(tmp_path / "images/fixed.zarr/0"))
    change = Once(lambda: voxels.set_basic_selection(slice(None), np.ones(SHAPE, np.float32)))
    found = register(tmp_path / "images", tmp_path / "run.zarr", LONG, checkpoint=None, progress=change)
    assert change.outcome == "acted"
    assert list(found.report["changed_inputs"]) == ["fixed"]
    assert "the fixed image changed while the run read it" in caplog.text

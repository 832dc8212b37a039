"""A run is resumed as it was started; what is given besides must be the same."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import dask.array as da
import numpy as np
import pytest

from daskreg import MSE, Affine, Config, Deformable, Rigid
from daskreg.cli import main
from daskreg.errors import ConfigError, OutputExists, RunError
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, RunStore, open_volume, write_image
from daskreg.workflows.inputs import Request
from daskreg.workflows.register import register
from daskreg.workflows.result import Result
from daskreg.workflows.resume import keep_checkpoint_or_remove, require_same_images, restore_request, seconds_so_far
from daskreg.workflows.unchanged import input_digests

GRID = Grid((8, 8, 8))
STAGES = (Affine(), Deformable(scales=(2,), iterations=(5,)))
ASKED = Request("f.zarr", "m.zarr", STAGES, fixed_mask="mask.nii", initial_transform="start.tfm")


def started(tmp_path, request=ASKED, **recipe):
    return RunStore.create(tmp_path / "run.zarr", fixed=GRID, moving=GRID, recipe={**request.recipe(), **recipe})


def test_a_run_knows_what_it_was_started_with(tmp_path):
    found = restore_request(started(tmp_path), Request())
    assert (found.fixed, found.moving, found.fixed_mask, found.moving_mask) == ("f.zarr", "m.zarr", "mask.nii", None)
    assert found.chosen == Config(stages=STAGES, initial_transform="start.tfm")


def test_what_is_given_again_may_be_the_same(tmp_path):
    found = restore_request(started(tmp_path), ASKED)
    assert found.chosen == ASKED.chosen
    assert found.fixed_mask == "mask.nii"


def test_what_is_given_again_may_be_named_by_another_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = {"fixed_mask": str(tmp_path / "mask.nii"), "initial_transform": "./start.tfm"}
    assert restore_request(started(tmp_path), replace(ASKED, **again)).moving == "m.zarr"
    with pytest.raises(ConfigError, match="with the fixed mask"):
        restore_request(RunStore.attach(tmp_path / "run.zarr"), replace(ASKED, fixed_mask="mask.nii::spacing=2"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"initial_transform": "other.tfm"},
            r"with the initial transform start\.tfm; leave initial_transform out",
        ),
        ({"fixed_mask": "other.nii"}, r"with the fixed mask mask\.nii"),
        ({"moving_mask": "other.nii"}, "without moving mask"),
        ({"config": "rigid"}, "another configuration"),
    ],
)
def test_what_is_given_besides_is_refused_unless_it_is_the_same(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words):
        restore_request(started(tmp_path), Request(**given))


@pytest.mark.parametrize("given", [{"fill": -1000}, {"background": "auto"}])
def test_another_fill_or_background_is_refused_although_no_configuration_is_given(tmp_path, given):
    with pytest.raises(ConfigError, match="was started with another fill or background; leave them out"):
        restore_request(started(tmp_path), Request(**given))
    (tmp_path / "run.zarr").rename(tmp_path / "first.zarr")
    assert restore_request(started(tmp_path, replace(ASKED, **given)), Request(**given)).moving == "m.zarr"


def test_a_mask_that_only_the_configuration_names_is_the_same_mask(tmp_path):
    config = Config(stages=STAGES, moving_mask="weights.nii")
    store = started(tmp_path, Request("f.zarr", "m.zarr", config))
    assert restore_request(store, Request(moving_mask="weights.nii", config=config)).chosen == config


def test_the_seconds_of_earlier_parts_are_those_of_the_last_checkpoint_of_either_kind(tmp_path, monkeypatch):
    store = CheckpointStore(str(started(tmp_path).path))
    assert seconds_so_far(store.run_path, str(tmp_path)) == 0
    store.begin(1, {})
    store.commit(1, {"stage": 0})  # as earlier versions did
    assert seconds_so_far(store.run_path, str(tmp_path)) == 0
    store.begin(2, {})
    store.commit(2, {"seconds": 5.0})
    store.keep(32 * "a")
    assert seconds_so_far(store.run_path, str(tmp_path)) == 5
    kept = SimpleNamespace(state={"seconds": 7.0})
    monkeypatch.setattr("daskreg.workflows.resume.KeptCheckpoint.latest", lambda folder, progress: kept)
    assert seconds_so_far(store.run_path, str(tmp_path)) == 7
    assert seconds_so_far(store.run_path, None) == 5


class Unregistered(MSE):
    """Parameters of a kind that no name selects."""

    kind: Literal["unregistered"] = "unregistered"


def test_a_configuration_with_an_instance_of_another_package_must_be_given_again(tmp_path):
    config = Config(stages=(Rigid(similarity=Unregistered()),))
    store = started(tmp_path, Request("f.zarr", "m.zarr", config))
    assert restore_request(store, Request(config=config)).chosen == config
    with pytest.raises(ConfigError, match="unknown name 'unregistered'"):
        restore_request(store, Request()).chosen  # noqa: B018  # parses what the run recorded
    with pytest.raises(ConfigError, match="another configuration"):
        restore_request(store, Request(config=Config(stages=(Rigid(similarity=Unregistered(), scales=(2,)),))))


def test_arrays_in_memory_must_be_given_again(tmp_path):
    array = np.zeros(GRID.shape, np.float32)
    store = started(tmp_path, Request("f.zarr", array, STAGES, moving_mask=array))
    with pytest.raises(ConfigError, match="arrays in memory; give moving and moving_mask again"):
        restore_request(store, Request())
    found = restore_request(store, Request(moving=array, moving_mask=array))
    assert found.moving is array


def test_a_recipe_of_an_earlier_version_can_be_resumed(tmp_path):
    """It does not say which images were arrays: both, where there is no address."""
    recipe = {k: v for k, v in ASKED.recipe().items() if k != "arrays"}
    store = RunStore.create(tmp_path / "run.zarr", fixed=GRID, moving=GRID, recipe=recipe)
    assert restore_request(store, Request()).fixed == "f.zarr"
    bare = RunStore.create(tmp_path / "bare.zarr", fixed=GRID, moving=GRID, recipe={**recipe, "fixed": None})
    with pytest.raises(ConfigError, match="give fixed again"):
        restore_request(bare, Request())


def test_the_images_must_be_those_of_the_run(tmp_path):
    store = started(tmp_path)
    require_same_images(store, (GRID, GRID))
    with pytest.raises(ConfigError, match=r"another moving image \(\(8, 8, 8\), not \(8, 8, 9\)\)"):
        require_same_images(store, (GRID, replace(GRID, shape=(8, 8, 9))))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A complete run from two files."""
    folder = tmp_path_factory.mktemp("complete")
    for name in ("f", "m", "other"):
        write_image(folder / f"{name}.nii", np.full(GRID.shape, len(name), np.float32), GRID)
    asked = Request(str(folder / "f.nii"), str(folder / "m.nii"), STAGES, fill=3)
    recipe = {**asked.recipe(), "inputs": input_digests(asked)}
    grid = open_volume(folder / "f.nii").grid
    run = RunStore.create(folder / "run.zarr", fixed=grid, moving=grid, recipe=recipe)
    run.set_affine(np.eye(4))
    return RunStore.open(run.finish({}).path)


def beside(run, given):
    """Arguments, their images in the folder of the run."""
    return {k: f"{Path(run.path).parent}/{v}" if k in ("fixed", "moving") and isinstance(v, str) else v for k, v in given.items()}


@pytest.mark.parametrize(
    "given",
    [{}, {"fixed": "f.nii", "moving": "m.nii"}, {"fixed": "f.nii", "moving": "m.nii", "config": STAGES, "fill": 3}, {"fill": 3}],
)
def test_a_complete_run_is_returned_by_the_line_that_made_it(complete, given, caplog):
    caplog.set_level("INFO", "daskreg")
    before = complete.state
    assert register(**beside(complete, given), output=complete.path, resume=True) == Result(complete)
    assert "is complete: nothing is computed" in caplog.text
    assert complete.state == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moving": "other.nii"}, r"made from another moving image: .*m\.nii, not .*other\.nii; name another output"),
        ({"moving": "m.nii::spacing=2"}, "another moving image, or one of another voxel size"),
        ({"fixed": np.ones(GRID.shape, np.float32)}, "another fixed image"),
        ({"fixed_mask": da.ones(GRID.shape)}, "from inputs that cannot be compared"),
        ({"config": "rigid"}, "another configuration"),
        ({"config": STAGES}, "another configuration"),
        ({"fill": 4}, "another fill or background"),
        (
            {"initial_transform": np.zeros((3, *GRID.shape)), "fixed": "f.nii", "moving": "m.nii"},
            "leave out the initial transform",
        ),
        ({"overwrite": True}, "nothing to continue; leave out resume"),
    ],
)
def test_a_complete_run_of_something_else_is_not_returned(complete, given, words):
    with pytest.raises((ConfigError, OutputExists), match=words):
        register(**beside(complete, given), output=complete.path, resume=True)


def test_the_command_line_refuses_another_initial_transform(tmp_path, monkeypatch, capsys):
    store = started(tmp_path)
    monkeypatch.setattr("daskreg.workflows.register.run_to_resume", lambda output: store)
    command = ["daskreg", "register", "--resume", "-o", store.path, "--initial-transform", "other.tfm"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "was started with the initial transform start.tfm" in capsys.readouterr().err


@pytest.mark.parametrize("here", ["elsewhere", "where the same names are other files"])
def test_a_run_is_continued_from_any_folder(tmp_path, monkeypatch, caplog, here):
    """Names that were relative to the folder that it was started in are those of the same files."""
    first, second = tmp_path / "first", tmp_path / "second"
    names = ("f.zarr", "m.zarr", "mask.zarr", "weights.zarr")
    for folder in (first, second):
        folder.mkdir()
        for name in names if folder == first or "same" in here else ():
            write_image(folder / name, np.full(GRID.shape, 1 + (folder == second), np.float32), GRID)
    monkeypatch.chdir(first)
    asked = Request("f.zarr::level=0", "m.zarr", Config(stages=STAGES, moving_mask="weights.zarr"), fixed_mask="mask.zarr")
    store = started(tmp_path, asked, inputs=input_digests(asked))
    monkeypatch.chdir(second)
    with caplog.at_level("INFO"):
        found = restore_request(store, Request())
    assert found.fixed == f"{first}/f.zarr::level=0"
    assert (found.moving, found.fixed_mask) == (f"{first}/m.zarr", f"{first}/mask.zarr")
    assert found.chosen.moving_mask == f"{first}/weights.zarr"
    assert f"the fixed image f.zarr::level=0 of the run is {first}/f.zarr" in caplog.text
    assert input_digests(found) == store.recipe["inputs"]
    assert restore_request(store, Request(fixed_mask="../first/mask.zarr")).fixed_mask == "../first/mask.zarr"
    monkeypatch.chdir(first)
    assert restore_request(store, Request()).fixed == "f.zarr::level=0"


class Said(KeyboardInterrupt):
    """As of a command, which says the notes of what ends it."""

    notes_are_said = True


@pytest.mark.parametrize(("error", "logged"), [(KeyboardInterrupt, True), (SystemExit, True), (Said, False), (RunError, False)])
def test_how_to_go_on_is_logged_where_an_interrupt_may_be_caught(tmp_path, caplog, error, logged):
    """A script that catches Ctrl-C, and a notebook that shows no notes, would not say it."""
    store = started(tmp_path)
    checkpoint = CheckpointStore(store.path)
    checkpoint.begin(1, {})
    checkpoint.commit(1, {"losses": []})
    with pytest.raises(error) as caught, keep_checkpoint_or_remove(store):
        raise error("stopped")
    (note,) = caught.value.__notes__
    assert f"continue with 'daskreg register --resume -o {store.name}'" in note
    assert (note in caplog.messages) == logged

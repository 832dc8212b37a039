"""A run that replaces something is written beside it; whoever fails or dies, the newest complete result is the one that stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from daskreg.errors import IncompleteRun, OutputBusy, OutputError, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, RunStore
from daskreg.storage.fs import swap
from daskreg.storage.fs.atomic import require_writable
from daskreg.storage.fs.files import exists, replace_text
from daskreg.storage.runs import place
from daskreg.storage.runs.place import place_beside

GRID = Grid((4, 4, 3))
ROOT = Path(__file__).parents[4]


@pytest.fixture(params=["local", "two renames", "memory"])
def path(request, tmp_path, monkeypatch):
    if request.param == "two renames":  # as on NFS
        monkeypatch.setattr(swap, "_rename", lambda *_, **__: False)
    return f"memory://{tmp_path.name}/r.zarr" if request.param == "memory" else str(tmp_path / "r.zarr")


def started(path, **options):
    return RunStore.create(path, fixed=GRID, moving=GRID, **options)


def complete(path, value, **options):
    run = started(path, **options)
    run.create_image("moved", GRID)
    run.write("moved", GRID.region, np.full(GRID.shape, value, np.float32))
    return run.finish({"value": value})


def value_of(path):
    run = RunStore.open(path)
    np.testing.assert_array_equal(run.read_image("moved").read(), run.provenance["value"])
    return run.provenance["value"]


def with_checkpoint(run):
    store = CheckpointStore(run.path)
    store.begin(1, {})
    store.commit(1, {"of": run.attempt})
    return run


def edit(path, **changes):
    meta = os.path.join(path, "zarr.json")
    tree = json.loads(Path(meta).read_text())
    tree["attributes"]["daskreg"] |= changes
    Path(meta).write_text(json.dumps(tree))


def names_beside(path):
    if path.startswith("memory"):
        return sorted(os.path.basename(n) for n in fsspec.filesystem("memory").ls(os.path.dirname(path[8:]), detail=False))
    return sorted(os.listdir(os.path.dirname(path)))


# --- failures -------------------------------------------------------------------------------------------------------------


def test_the_older_run_can_be_read_until_the_new_one_is_complete(path):
    complete(path, 1)
    again = started(path, overwrite=True)
    assert value_of(path) == 1
    assert again.name == path
    again.create_image("moved", GRID)
    again.write("moved", GRID.region, np.full(GRID.shape, 2, np.float32))
    assert value_of(path) == 1
    assert again.finish({"value": 2}).path == path
    assert value_of(path) == 2
    assert names_beside(path) == ["r.zarr"]


def test_an_abandoned_run_leaves_what_it_would_have_replaced(path):
    complete(path, 1)
    started(path, overwrite=True).abandon()
    assert value_of(path) == 1
    started(path, overwrite=True)  # dies
    started(path, overwrite=True).abandon()
    assert value_of(path) == 1
    assert complete(path, 2, overwrite=True).path == path
    assert names_beside(path) == ["r.zarr"]


def test_an_older_result_that_was_put_aside_never_comes_back(tmp_path):
    """Another version of daskreg left it when it was killed; the next command that failed brought it back, over a newer one."""
    path = str(tmp_path / "r.zarr")
    complete(path, 1)
    os.rename(path, tmp_path / ".r.zarr.replaced")
    started(path).abandon()
    complete(path, 2)
    started(path, overwrite=True).abandon()
    assert value_of(path) == 2
    complete(path, 3, overwrite=True)
    assert value_of(path) == 3
    assert value_of(tmp_path / ".r.zarr.replaced") == 1


def test_a_result_that_appeared_meanwhile_is_kept_and_so_is_the_run(path):
    complete(path, 1)
    run = started(path, overwrite=True)
    run.create_image("moved", GRID)
    run.write("moved", GRID.region, np.full(GRID.shape, 3, np.float32))
    place.remove(path)
    complete(path, 2222)
    with pytest.raises(OutputExists, match=r"was changed while a run worked.*is kept.*--resume -o .*r\.zarr' puts it in"):
        run.finish({"value": 3})
    assert value_of(path) == 2222
    with pytest.raises(OutputExists, match="is kept"):  # nor does another run take either's place
        started(path, overwrite=True)
    assert (value_of(path), value_of(run.path)) == (2222, 3)
    with pytest.raises(OutputExists, match="is complete"):
        RunStore.resume(path)
    assert value_of(path) == 3
    assert names_beside(path) == ["r.zarr"]


def test_a_run_that_continues_elsewhere_is_left_alone_by_the_process_that_had_it(path):
    run = with_checkpoint(started(path))
    run.mark_resumable()
    other = RunStore.resume(path)
    for act in (run.require_mine, lambda: run.finish({}), lambda: RunStore.attach(path, run.attempt)):
        with pytest.raises(OutputError, match="was taken over by process"):
            act()
    run.abandon()
    other.require_mine()
    other.finish({})
    assert RunStore.open(path).complete


def test_a_run_that_was_removed_says_so_and_leaves_nothing(path):
    run = started(path)
    run.create_image("moved", GRID)
    place.remove(path)
    run.write("moved", GRID.region, np.ones(GRID.shape, np.float32))  # makes its folder again
    assert exists(path)
    for act in (run.require_mine, lambda: run.finish({}), lambda: RunStore.attach(path, run.attempt)):
        with pytest.raises(OutputError, match="was removed while the run wrote to it"):
            act()
    run.abandon()
    assert not exists(path)


def test_a_folder_of_other_things_is_not_overwritten(path):
    """One in a bucket was deleted, with all that was in it."""
    os.mkdir(path) if not path.startswith("memory") else None
    replace_text(f"{path}/notes.txt", "all of them")
    with pytest.raises((OutputError, OutputExists), match="neither image nor run, and is not overwritten"):
        started(path, overwrite=True)
    assert exists(f"{path}/notes.txt")
    replace_text(f"{path}.nii", "a file alone")
    require_writable(f"{path}.nii", True)


def test_what_others_put_where_a_removed_run_was_stays(tmp_path):
    run = started(tmp_path / "r.zarr")
    shutil.rmtree(run.path)
    os.mkdir(run.path)
    Path(run.path, "thesis.tex").write_text("x")
    run.abandon()
    assert os.listdir(run.path) == ["thesis.tex"]


def test_what_is_no_run_beside_the_output_is_not_deleted(tmp_path):
    path = str(tmp_path / "r.zarr")
    complete(path, 1)
    os.mkdir(place_beside(path))
    Path(place_beside(path), "thesis.tex").write_text("x")
    with pytest.raises(OutputExists, match="is no run; move it away"):
        started(path, overwrite=True)


def test_a_run_that_goes_on_without_a_lock_is_not_overwritten(tmp_path):
    """As of an earlier version."""
    path = str(tmp_path / "r.zarr")
    run = with_checkpoint(started(path))
    edit(run.path, pid=os.getppid(), pid_started=None)
    with pytest.raises(OutputBusy, match=rf"process {os.getppid()} is working on"):
        started(path, overwrite=True)
    with pytest.raises(IncompleteRun, match="still going on"):
        RunStore.resume(path)


# --- resuming -------------------------------------------------------------------------------------------------------------


def test_of_a_run_and_an_unfinished_one_that_replaces_it_the_latter_is_continued(path):
    complete(path, 1)
    run = with_checkpoint(started(path, overwrite=True))
    run.mark_resumable()
    again = RunStore.resume(path)
    assert (again.path, again.name) == (run.path, path)
    assert value_of(path) == 1
    again.create_image("moved", GRID)
    again.write("moved", GRID.region, np.full(GRID.shape, 2, np.float32))
    again.finish({"value": 2})
    assert value_of(path) == 2


def test_an_unfinished_run_that_another_was_to_replace_is_continued_when_that_has_no_checkpoint(path):
    first = with_checkpoint(started(path))
    first.mark_resumable()
    started(path, overwrite=True)  # dies
    assert RunStore.resume(path).path == path


# --- what a store says ----------------------------------------------------------------------------------------------------


def precious(tmp_path):
    folder = tmp_path / "precious"
    (folder / "displacement").mkdir(parents=True)
    (folder / "thesis.tex").write_text("x")
    return folder


def unharmed(folder):
    return sorted(os.listdir(folder)) == ["displacement", "thesis.tex"]


@pytest.mark.parametrize("end", ["finish", "abandon"])
def test_a_store_does_not_name_what_is_deleted(tmp_path, end):
    folder = precious(tmp_path)
    run = with_checkpoint(started(tmp_path / "r.zarr"))
    edit(run.path, replaces=str(folder), replaced_version=str(folder), pid=2**22 + 1)
    again = RunStore.resume(run.path)
    again.finish({}) if end == "finish" else again.abandon()
    assert unharmed(folder)


@pytest.mark.parametrize("name", ["moved", "transform", "checkpoint", "transform/displacement", "checkpoint/1", "checkpoint/x"])
def test_a_link_in_a_store_does_not_say_what_is_deleted_or_written(tmp_path, name):
    folder = precious(tmp_path)
    run = with_checkpoint(started(tmp_path / "r.zarr"))
    run.mark_resumable()
    at = Path(run.path, name)
    kept = Path(run.path, "checkpoint", "latest.json").read_text()
    if at.exists():
        shutil.rmtree(at)
    at.symlink_to(folder, target_is_directory=True)
    if name == "checkpoint":
        (folder / "latest.json").write_text(kept)
    with pytest.raises(Unreadable, match=r"holds a link, .*; a run has none"):
        RunStore.resume(run.path)
    (folder / "latest.json").unlink(missing_ok=True)
    assert unharmed(folder)
    started(run.path, overwrite=True).finish({})
    assert unharmed(folder)


# --- processes that die ---------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from daskreg.grid import Grid
from daskreg.storage import RunStore
from daskreg.storage.fs import swap
from daskreg.storage.runs import place

path, moment = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the swap":
    place.put_in_place = die
if moment == "after the exchange":
    rename = swap._rename
    swap._rename = lambda *a, exchange: (rename(*a, exchange=exchange), die())
if moment == "between two renames":
    swap._rename = lambda *_, **__: False
    real, swap.os.rename = swap.os.rename, lambda a, b: (real(a, b), ".old-" in b and die())
if moment == "before the older one is deleted":
    swap.remove = die
grid = Grid((4, 4, 3))
run = RunStore.create(path, fixed=grid, moving=grid, overwrite=True)
run.create_image("moved", grid)
if moment == "at work":
    die()
import numpy as np
run.write("moved", grid.region, np.full(grid.shape, 2, np.float32))
run.finish({"value": 2})
"""
SWAPPING = ["before the swap", "after the exchange", "between two renames", "before the older one is deleted"]


# each moment once in the default suite, by turns with either sequel
CASES = [
    pytest.param(moment, after, marks=[pytest.mark.slow] if (k + j) % 2 else [])
    for k, moment in enumerate(["at work", *SWAPPING])
    for j, after in enumerate(["another run fails", "it is resumed"])
]


@pytest.mark.parametrize(("moment", "after"), CASES)
def test_whenever_a_run_is_killed_the_newest_complete_result_stays(tmp_path, moment, after):
    path = str(tmp_path / "r.zarr")
    complete(path, 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", KILLED, path, moment], env=environment, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    if after == "another run fails":
        started(path, overwrite=True).abandon()
    else:
        with pytest.raises((OutputExists, IncompleteRun)):
            RunStore.resume(path)
    assert value_of(path) == (1 if moment == "at work" else 2)
    assert complete(path, 3, overwrite=True).complete
    assert value_of(path) == 3
    assert not exists(place_beside(path))

"""What is there is there until something complete takes its place; whoever dies or fails in between leaves it as it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from daskreg.errors import GridError, OutputBusy, OutputError, OutputExists
from daskreg.grid import Grid
from daskreg.storage import open_volume, write_image
from daskreg.storage.fs import atomic, swap
from daskreg.storage.fs.atomic import atomic_output, remove_leftovers
from daskreg.storage.fs.files import exists
from daskreg.storage.fs.lock import lock_path, only_writer

GRID = Grid((8, 8, 8), unit="mm")
ENDINGS = ["nii.gz", "ome.zarr"]
ROOT = Path(__file__).parents[4]


@pytest.fixture(params=["exchange", "two renames"])
def file_system(request, monkeypatch):
    """NFS, for one, cannot exchange two folders in one step."""
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_rename", lambda *_, **__: False)


on_each_file_system = pytest.mark.usefixtures("file_system")


def write(path, value, **options):
    write_image(path, np.full(GRID.shape, value, np.uint8), GRID, **options)


def write_pair(path):
    write(f"{path}/0.zarr", 2)
    write_image(f"{path}/1.zarr", np.zeros((1, 1, 1)), GRID)


def value_of(path):
    voxels = open_volume(path).read()
    assert voxels.min() == voxels.max()
    return int(voxels.max())


@on_each_file_system
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_older_output_can_be_read_until_the_new_one_is_complete(tmp_path, ending):
    path = str(tmp_path / f"a.{ending}")
    write(path, 1)
    with atomic_output(path, overwrite=True) as unfinished:
        write(unfinished, 2)
        assert value_of(path) == 1
    assert value_of(path) == 2
    assert os.listdir(tmp_path) == [f"a.{ending}"]


@on_each_file_system
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_kept(tmp_path, ending, overwrite):
    path, other = str(tmp_path / f"a.{ending}"), str(tmp_path / f"b.{ending}")
    write(other, 3)
    refused = pytest.raises(OutputExists, match="appeared while this command wrote it, and is kept")
    with refused, atomic_output(path, overwrite) as unfinished:
        write(unfinished, 2)
        os.rename(other, path)
    assert value_of(path) == 3
    assert os.listdir(tmp_path) == [f"a.{ending}"]


@on_each_file_system
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_changed_meanwhile_is_kept(tmp_path, ending):
    """By a program that knows no locks."""
    path, other = str(tmp_path / f"a.{ending}"), str(tmp_path / f"b.{ending}")
    write(path, 1)
    time.sleep(0.02)
    write(other, 3)
    refused = pytest.raises(OutputExists, match="was changed while this command wrote it, and is kept")
    with refused, atomic_output(path, overwrite=True) as unfinished:
        write(unfinished, 2)
        os.rename(path, tmp_path / "older")
        os.rename(other, path)
    assert value_of(path) == 3


def test_a_second_writer_of_an_output_is_refused(tmp_path):
    path = str(tmp_path / "a.ome.zarr")
    with atomic_output(path) as unfinished:
        for overwrite in (False, True):
            with pytest.raises(OutputBusy, match="is being written by another process"):
                write(path, 9, overwrite=overwrite)
        write(unfinished, 2)
    assert value_of(path) == 2


def test_an_unfinished_output_that_is_removed_says_so(tmp_path):
    path = str(tmp_path / "a.ome.zarr")
    with pytest.raises(OutputError, match="was removed meanwhile"), atomic_output(path) as unfinished:
        os.rmdir(os.path.dirname(unfinished))
    assert os.listdir(tmp_path) == []


def test_a_link_in_a_store_does_not_say_what_is_replaced(tmp_path):
    """A scene links archives below it; what it says must not decide whose archive is deleted."""
    write(tmp_path / "archive.ome.zarr", 1)
    write(tmp_path / "archive.ome.zarr" / "inside.ome.zarr", 1)
    zarr.create_group(str(tmp_path / "scene.zarr"))
    (tmp_path / "scene.zarr" / "fixed.ome.zarr").symlink_to(tmp_path / "archive.ome.zarr")
    for output in ("scene.zarr/fixed.ome.zarr", "scene.zarr/fixed.ome.zarr/inside.ome.zarr"):
        with pytest.raises(OutputError, match=r"fixed\.ome\.zarr is a link in a Zarr store, to .*archive"):
            write(tmp_path / output, 2, overwrite=True)
    assert value_of(tmp_path / "archive.ome.zarr") == 1


@on_each_file_system
def test_a_link_of_the_user_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "scratch").mkdir()
    write(tmp_path / "scratch" / "a.ome.zarr", 1)
    (tmp_path / "a.ome.zarr").symlink_to(tmp_path / "scratch" / "a.ome.zarr")
    write(tmp_path / "a.ome.zarr", 2, overwrite=True)
    assert value_of(tmp_path / "scratch" / "a.ome.zarr") == 2
    assert (tmp_path / "a.ome.zarr").is_symlink()


# --- in an object store ---------------------------------------------------------------------------------------------------


def test_in_an_object_store_the_older_output_can_be_read_until_the_new_one_is_complete(tmp_path):
    path = f"memory://{tmp_path.name}/a.ome.zarr"
    write(path, 1)
    with atomic_output(path, overwrite=True) as unfinished:
        write(unfinished, 2)
        assert value_of(path) == 1
    assert value_of(path) == 2
    assert fsspec.filesystem("memory").ls(f"/{tmp_path.name}", detail=False) == [f"/{tmp_path.name}/a.ome.zarr"]


def test_a_copy_in_an_object_store_that_was_cut_short_is_finished_by_the_next_writer(tmp_path, monkeypatch):
    path, memory = f"memory://{tmp_path.name}/a.ome.zarr", fsspec.filesystem("memory")
    write(path, 1)

    def killed(sources, targets):
        for source, target in zip(sources[:1], targets[:1], strict=True):
            memory.cp_file(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "copy", lambda self, *where: killed(*where))
        patched.setattr("daskreg.storage.fs.atomic._discard", lambda *_: None)
        patched.setattr("daskreg.storage.fs.lock.OutputLock.release", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            write(path, 2, overwrite=True)
    monkeypatch.setattr("daskreg.storage.fs.lock.is_running", lambda record: False)
    with pytest.raises(OutputExists):
        write(path, 3)
    assert value_of(path) == 2


@pytest.mark.parametrize("older", [True, False])
def test_in_an_object_store_what_threads_write_after_a_failure_is_deleted_at_exit(tmp_path, monkeypatch, older):
    path, left = f"memory://{tmp_path.name}/a.ome.zarr", []
    monkeypatch.setattr(atomic.atexit, "register", lambda *call: left.append(call))

    def fail():
        with pytest.raises(KeyboardInterrupt), atomic_output(path, overwrite=True) as place:
            raise KeyboardInterrupt
        zarr.create_array(f"{place}/0", data=np.zeros(3))
        return place

    if older:
        write(path, 1)
    place = fail()
    assert exists(place)
    with only_writer(path):  # by another command
        for function, *arguments in left:
            function(*arguments)
    assert exists(place)
    for function, *arguments in left:
        function(*arguments)
    assert not exists(place)
    assert exists(path) == older
    write(path, 2, overwrite=True)
    for function, *arguments in left:
        function(*arguments)
    assert value_of(path) == 2


def test_in_an_object_store_a_failure_leaves_what_was_there(tmp_path):
    path = f"memory://{tmp_path.name}/a.ome.zarr"
    for older in (False, True):
        with pytest.raises(GridError, match="do not fit"), atomic_output(path, overwrite=True) as unfinished:
            write_pair(unfinished)
        assert fsspec.filesystem("memory").exists(f"/{tmp_path.name}/a.ome.zarr") == older
        if not older:
            write(path, 1)
    assert value_of(path) == 1


# --- processes that die, and processes at once ------------------------------------------------------------------------------

SLOW = """
import sys, time
import dask.array as da, numpy as np
from daskreg.grid import Grid
from daskreg.storage import write_image
from daskreg.storage.fs import swap

path, value, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def wait(*_, **__):
    print("now", flush=True)
    sys.stdin.readline()

def block(v):
    if moment == "writing":
        wait()
    return v

if moment == "swapping":
    rename = swap._rename
    swap._rename = lambda *a, exchange: exchange and (rename(*a, exchange=True), wait())[0]
if moment == "between two renames":
    swap._rename, swap.remove = (lambda *_, **__: False), wait
    real, swap.os.rename = swap.os.rename, lambda a, b: (real(a, b), ".old-" in b and wait())[0]
data = da.from_array(np.full((8, 8, 8), value, np.uint8)).map_blocks(block, meta=np.empty((0, 0, 0), np.uint8))
write_image(path, data, Grid((8, 8, 8), unit="mm"), overwrite=True)
"""


def slow_writer(path, value, moment):
    """A process that waits at this moment for a line."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(path), str(value), moment],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "now\n", child.communicate()[1]
    return child


def test_of_two_processes_that_write_one_output_one_is_refused(tmp_path):
    path = tmp_path / "a.ome.zarr"
    write(path, 1)
    child = slow_writer(path, 2, "writing")
    with pytest.raises(OutputBusy, match=rf"process {child.pid} on .*wait for it"):
        write(path, 3, overwrite=True)
    assert value_of(path) == 1
    child.communicate("\n", timeout=60)
    assert child.returncode == 0
    assert value_of(path) == 2
    assert os.listdir(tmp_path) == ["a.ome.zarr"]


def test_inputs_that_a_killed_run_had_staged_are_deleted_by_the_next_writer(tmp_path):
    path = tmp_path / "a.ome.zarr"
    write(path, 1)
    os.mkdir(tmp_path / ".a.ome.zarr.part-inputs-x1")
    os.mkdir(tmp_path / ".b.ome.zarr.part-inputs-x1")  # of another output
    remove_leftovers(str(path))
    assert sorted(os.listdir(tmp_path)) == [".b.ome.zarr.part-inputs-x1", "a.ome.zarr"]


@pytest.mark.parametrize(("moment", "kept"), [("writing", 1), ("swapping", 2), ("between two renames", 2)])
def test_a_killed_writer_leaves_the_older_or_its_own_output_and_the_next_one_tidies_up(tmp_path, moment, kept):
    path = tmp_path / "a.ome.zarr"
    write(path, 1)
    child = slow_writer(path, 2, moment)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert os.path.exists(lock_path(str(path)))
    assert path.exists() == (moment != "between two renames")
    if path.exists():
        assert value_of(path) == kept
    with pytest.raises(RuntimeError), atomic_output(str(path), overwrite=True):
        raise RuntimeError  # takes over, and fails
    assert value_of(path) == kept
    assert os.listdir(tmp_path) == ["a.ome.zarr"]


def test_threads_of_one_process_are_writers_of_their_own(tmp_path):
    path, outcomes, ready = str(tmp_path / "a.ome.zarr"), [], threading.Barrier(4)

    def attempt(value):
        ready.wait()
        try:
            write(path, value)
            outcomes.append(value)
        except OutputError:
            pass

    threads = [threading.Thread(target=attempt, args=(v,)) for v in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [value_of(path)] == outcomes
    assert os.listdir(tmp_path) == ["a.ome.zarr"]

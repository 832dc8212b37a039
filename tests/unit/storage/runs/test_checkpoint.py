"""The last committed checkpoint is whole, whatever happens while the next one is written."""

import errno
import json
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from daskreg.errors import IncompleteRun, NotFound, OutOfSpace, OutputError, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.grid.partition import Partition, Span
from daskreg.storage import CheckpointStore, RunStore

SHAPE = (3, 11, 4, 5)
GONE = 2**22 + 1  # beyond what Linux hands out
FIELD = "transform/displacement"
GRID = Grid((70, 4, 3))


def started(path, **options):
    return RunStore.create(path, fixed=GRID, moving=GRID, **options)


def field(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(store, number, values, ranks=1, state=None):
    """What ``ranks`` owners and rank 0 do."""
    store.begin(number, {name: v.shape for name, v in values.items()})
    for name, v in values.items():
        partition = Partition.of(v.shape[1], ranks, minimum=1)
        for slab in (partition[rank] for rank in reversed(range(ranks))):
            owner = pickle.loads(pickle.dumps(store))
            owner.write(number, name, slab.start, v[:, slab.within(partition.whole)])
    store.commit(number, state or {})


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    path = str(tmp_path / "run.zarr") if request.param == "local" else f"memory://{tmp_path.name}/run.zarr"
    started(path)
    return path


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(started(tmp_path / "run.zarr").path)


def chunk(store, number, name, z):
    return os.path.join(store.path, str(number), name, f"c.0.{z}.0.0")


def pretend_dead(path):
    edit(path, pid=GONE)


def edit(path, **changes):
    meta = os.path.join(path, "zarr.json")
    with open(meta, encoding="utf-8") as file:
        tree = json.load(file)
    tree["attributes"]["daskreg"] |= changes
    with open(meta, "w", encoding="utf-8") as file:
        json.dump(tree, file)


@pytest.mark.parametrize("ranks", [1, 3, 13])
def test_planes_come_back_for_any_partition(path, ranks):
    u, m = field(0), field(1, (3, 5, 2, 2))
    save(CheckpointStore(path), 1, {"u": u, "m": m}, ranks)
    back = CheckpointStore(path)
    for span in (Span(0, 11), Span(3, 4), Span(2, 9), Span(5, 5)):
        planes = back.read(1, "u", span)
        assert planes.dtype == np.float32
        np.testing.assert_array_equal(planes, u[:, span.start : span.stop])
    np.testing.assert_array_equal(back.read(1, "m", Span(0, 5)), m)


def test_zeros_are_written_too(path):
    save(CheckpointStore(path), 1, {"m": np.zeros(SHAPE, np.float32)})
    np.testing.assert_array_equal(CheckpointStore(path).read(1, "m", Span(0, 11)), 0)


def test_the_state_comes_back_bit_for_bit(path):
    losses = [*np.random.default_rng(0).standard_normal(200), 0.1 + 0.2, 5e-324, -0.0, float("inf")]
    single = np.random.default_rng(1).standard_normal(200).astype(np.float32)
    state = {"losses": losses, "single": single, "step": np.float32(0.1), "level": np.int64(2), "name": "ü", 10: {2: 1, 10: 2}}
    CheckpointStore(path).begin(1, {})
    CheckpointStore(path).commit(1, state | {"nan": float("nan")})
    number, back = CheckpointStore(path).latest()
    assert number == 1
    assert [float(x).hex() for x in back["losses"]] == [float(x).hex() for x in losses]
    np.testing.assert_array_equal(np.float32(back["single"]).view(np.uint32), single.view(np.uint32))
    assert (np.float32(back["step"]), back["level"], back["name"]) == (np.float32(0.1), 2, "ü")
    assert back["10"] == {"2": 1, "10": 2}
    assert np.isnan(back["nan"])


def test_a_commit_deletes_the_one_before(path):
    store = CheckpointStore(path)
    assert store.latest() is None
    save(store, 1, {"u": field(1)}, state={"n": 1})
    store.begin(2, {"u": SHAPE})
    assert store.latest() == (1, {"n": 1})
    store.write(2, "u", 0, field(2))
    np.testing.assert_array_equal(store.read(1, "u", Span(0, 11)), field(1))
    store.commit(2, {"n": 2})
    assert store.latest() == (2, {"n": 2})
    with pytest.raises(Unreadable, match=r"checkpoint/1/u"):
        CheckpointStore(path).read(1, "u", Span(0, 11))


def test_a_half_written_checkpoint_is_replaced(path):
    save(CheckpointStore(path), 1, {"u": field(1)})
    dead = CheckpointStore(path)
    dead.begin(2, {"u": SHAPE, "m": SHAPE})
    dead.write(2, "u", 0, field(9))
    save(CheckpointStore(path), 2, {"u": field(2, (3, 7, 4, 5))})
    assert CheckpointStore(path).latest() == (2, {})
    np.testing.assert_array_equal(CheckpointStore(path).read(2, "u", Span(0, 7)), field(2, (3, 7, 4, 5)))


def test_a_checkpoint_with_a_hole_is_not_committed(path):
    store = CheckpointStore(path)
    save(store, 1, {"u": field(1)}, state={"n": 1})
    store.begin(2, {"u": SHAPE})
    store.write(2, "u", 0, field(2)[:, :4])
    store.write(2, "u", 5, field(2)[:, 5:])
    with pytest.raises(OutputError, match=r"lacks 1 of 11 planes of u, the first is z = 4"):
        store.commit(2, {"n": 2})
    assert CheckpointStore(path).latest() == (1, {"n": 1})
    np.testing.assert_array_equal(CheckpointStore(path).read(1, "u", Span(0, 11)), field(1))


def test_wrong_arguments_raise_value_error(store):
    save(store, 3, {"u": field()})
    with pytest.raises(ValueError, match="numbers must grow"):
        store.begin(3, {"u": SHAPE})
    store.begin(4, {"u": SHAPE})
    with pytest.raises(ValueError, match="float64"):
        store.write(4, "u", 0, field().astype(np.float64))
    with pytest.raises(ValueError, match="expected"):
        store.write(4, "u", 0, field(shape=(3, 11, 5, 4)))
    for first in (-1, 1):
        with pytest.raises(ValueError, match="not inside"):
            store.write(4, "u", first, field())
    with pytest.raises(ValueError, match="not inside"):
        store.read(4, "u", Span(0, 12))
    with pytest.raises(TypeError, match="object"):
        store.commit(4, {"bad": object()})
    with pytest.raises(OutputError):
        store.write(5, "u", 0, field())


def test_a_missing_chunk_is_never_zeros(path):
    save(CheckpointStore(path), 1, {"u": field()})
    store = CheckpointStore(path)
    if path.startswith("memory"):
        import fsspec

        fsspec.filesystem("memory").rm(chunk(store, 1, "u", 6).removeprefix("memory:/"))
    else:
        os.unlink(chunk(store, 1, "u", 6))
    with pytest.raises(Unreadable, match=r"checkpoint/1/u: chunk c\.0\.6\.0\.0 is missing"):
        store.read(1, "u", Span(2, 9))
    np.testing.assert_array_equal(store.read(1, "u", Span(7, 11)), field()[:, 7:])


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty"])
def test_a_corrupt_chunk_is_named(store, damage):
    save(store, 1, {"u": field()})
    where = chunk(store, 1, "u", 6)
    with open(where, "r+b") as file:
        content = bytearray(file.read())
        content[10] ^= 1
        file.seek(0)
        file.truncate({"flipped bit": len(content), "cut short": len(content) // 2, "empty": 0}[damage])
        if damage == "flipped bit":
            file.write(content)
    with pytest.raises(Unreadable, match=r"chunk c\.0\.6\.0\.0 is damaged.*--overwrite"):
        store.read(1, "u", Span(0, 11))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', b"\xff\xfe", "flip"])
def test_a_damaged_pointer_is_unreadable(store, text):
    save(store, 1, {"u": field()}, state={"loss": 0.125})
    pointer = os.path.join(store.path, "latest.json")
    with open(pointer, "rb") as file:
        content = file.read()
    text = content.replace(b"0.125", b"0.124") if text == "flip" else text.encode() if isinstance(text, str) else text
    with open(pointer, "wb") as file:
        file.write(text)
    with pytest.raises(Unreadable, match=r"latest\.json"):
        store.latest()
    with pytest.raises(IncompleteRun, match="incomplete"):
        RunStore.open(store.run_path)


def test_damaged_metadata_is_unreadable(store):
    save(store, 1, {"u": field()})
    os.unlink(os.path.join(store.path, "1", "u", "zarr.json"))
    with pytest.raises(Unreadable, match=r"checkpoint/1/u"):
        CheckpointStore(store.run_path).read(1, "u", Span(0, 1))


# Each child gets a copy of a run with checkpoint 1 and fails before its n-th change to the disk while it makes checkpoint 2.
FAILING = """
import errno, os, shutil, signal, sys
import numpy as np
from daskreg.errors import OutOfSpace
from daskreg.storage import CheckpointStore

folder = sys.argv[1]
CREATING = {"open", "os.mkdir", "os.rename", "os.link"}

def copied(name):
    return shutil.copytree(os.path.join(folder, "0.zarr"), os.path.join(folder, name))

def attempt(path):
    store = CheckpointStore(path)
    store.begin(2, {"u": (3, 2, 2, 2)})
    for z in range(2):
        store.write(2, "u", z, np.full((3, 1, 2, 2), 2, np.float32))
    store.commit(2, {"n": 2})

def fail_at(n, path, how):
    count = 0
    def hook(event, arguments):
        nonlocal count
        changes = event in CREATING or event in {"os.remove", "os.rmdir"}
        if not changes or path not in str(arguments[0]) or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if how == "kill" and count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and count >= n and event in CREATING:
            raise OSError(errno.ENOSPC, "No space left on device")
    sys.addaudithook(hook)
    try:
        attempt(path)
    except OutOfSpace:
        return 3
    return 0

attempt(copied("warm"))  # what is imported late is imported once
shutil.rmtree(os.path.join(folder, "warm"))
for how in ("kill", "full"):
    for n in range(1, 200):
        path = copied(f"{how}-{n}.zarr")
        child = os.fork()
        if child == 0:
            code = 9
            try:
                code = fail_at(n, path, how)
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(how, ended, flush=True)
        if ended == 0:
            break
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The folder of the runs, and how each child ended."""
    folder = tmp_path_factory.mktemp("failures")
    save(CheckpointStore(started(folder / "0.zarr").path), 1, {"u": np.full((3, 2, 2, 2), 1, np.float32)}, state={"n": 1})
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FAILING, str(folder)]
    return folder, subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("how", "ended"), [("kill", -9), ("full", 3)])
def test_the_last_checkpoint_survives_a_failure_at_any_moment(failures, how, ended):
    folder, reported = failures
    codes = [int(code) for word, code in (line.split() for line in reported.stdout.splitlines()) if word == how]
    assert codes[-1] == 0, reported.stderr
    assert set(codes[:-1]) == {ended}, reported.stderr
    assert len(codes) > 15
    stores = [CheckpointStore(str(folder / f"{how}-{n}.zarr")) for n in range(1, len(codes) + 1)]
    found = [check_whole(store) for store in stores]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 2)


def check_whole(store):
    """The number of the checkpoint that counts; it is readable, and the next one leaves no rubbish."""
    number, state = store.latest()
    assert state == {"n": number}
    np.testing.assert_array_equal(store.read(number, "u", Span(0, 2)), np.full((3, 2, 2, 2), number))
    save(store, 3, {})
    assert sorted(os.listdir(store.path)) == ["3", "latest.json", "zarr.json"]
    return number


@pytest.mark.parametrize("call", ["zarr.storage._local._put", "os.fsync"])
def test_a_full_disk_is_out_of_space(store, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(store, 1, {"u": field(1)}, state={"n": 1})
    store.begin(2, {"u": SHAPE})
    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        with pytest.raises(OutOfSpace, match="free space"):
            store.write(2, "u", 0, field(2))
    store.write(2, "u", 0, field(2))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutOfSpace, match="free space"):
        store.commit(2, {"n": 2})
    assert store.latest() == (1, {"n": 1})
    np.testing.assert_array_equal(store.read(1, "u", Span(0, 11)), field(1))


def test_a_complete_run_has_no_checkpoint(path):
    run, store = RunStore.attach(path), CheckpointStore(path)
    save(store, 1, {"u": field()})
    run.finish({})
    assert store.latest() is None
    assert "checkpoint" not in RunStore.open(path)._group
    store.remove()


def test_a_resumable_run_says_how_to_continue(path):
    run = RunStore.attach(path)
    with pytest.raises(ValueError, match="no checkpoint"):
        run.mark_resumable()
    save(CheckpointStore(path), 1, {"u": field()})
    run.mark_resumable()
    assert run.state["resumable"] is True
    advice = r"stopped 20.*; continue it with 'daskreg register \.\.\. --resume', or repeat it with --overwrite\."
    with pytest.raises(IncompleteRun, match=advice):
        RunStore.open(path)
    with pytest.raises(OutputExists, match="--resume"):
        started(path)


def test_a_killed_run_says_how_to_continue(store):
    pretend_dead(store.run_path)
    with pytest.raises(IncompleteRun, match=r"died .*gone\); repeat it with --overwrite"):
        RunStore.open(store.run_path)
    save(store, 1, {"u": field()})
    with pytest.raises(IncompleteRun, match=r"died .*gone\); continue it with 'daskreg register \.\.\. --resume', or repeat"):
        RunStore.open(store.run_path)
    edit(store.run_path, host="elsewhere")
    with pytest.raises(IncompleteRun, match=r"going on elsewhere; wait for it, continue it with .*, or repeat"):
        RunStore.open(store.run_path)


def test_a_resumed_run_continues_from_its_checkpoint(path):
    RunStore.attach(path).abandon()
    started(path, recipe={"fixed": "f.nii", "config": {"rate": 0.1}})
    save(CheckpointStore(path), 1, {"u": field()}, state={"n": 1})
    RunStore.attach(path).mark_resumable()
    run = RunStore.resume(path)
    assert run.recipe == {"fixed": "f.nii", "config": {"rate": 0.1}}
    assert CheckpointStore(run.path).latest() == (1, {"n": 1})
    assert run.state["pid"] == os.getpid()
    assert len(run.state["resumed"]) == 1
    assert not {"stopped", "resumable"} & set(run.state)
    run.finish({"again": True})
    assert RunStore.open(path).provenance == {"again": True}


def test_images_of_the_earlier_attempt_are_deleted(path):
    run = RunStore.attach(path)
    for name in ("moved", FIELD):
        run.create_image(name, GRID, components=3 if name == FIELD else 0)
        run.build_pyramid(name)
    save(CheckpointStore(path), 1, {"u": field()})
    run.mark_resumable()
    again = RunStore.resume(path)
    assert not again.has("moved")
    assert not again.has(FIELD)
    again.create_image(FIELD, GRID, components=3)
    again.write(FIELD, GRID.region, np.ones((3, *GRID.shape), np.float32))
    np.testing.assert_array_equal(again.displacement(), 1)


def test_an_image_is_created_anew_over_an_old_one(path):
    run, small = RunStore.attach(path), Grid((6, 5, 4))
    run.create_image("moved", GRID)
    run.write("moved", GRID.region, np.ones(GRID.shape, np.float32))
    run.build_pyramid("moved")
    run.create_image("moved", small)
    assert run.read_image("moved").shape == small.shape
    with pytest.raises(Unreadable, match=r"the chunk c/0/0/0 is missing"):
        run.read_image("moved").read()
    with pytest.raises(NotFound, match="no image"):
        run.read_image("moved", 1)


def test_a_run_without_a_checkpoint_begins_again(tmp_path, caplog):
    path = tmp_path / "r.zarr"
    pretend_dead(started(path).path)
    with caplog.at_level(logging.INFO, "daskreg"):
        assert CheckpointStore(RunStore.resume(path).path).latest() is None
    assert "stopped before its first checkpoint: starting again" in caplog.text


def test_what_cannot_be_resumed_says_why(tmp_path):
    path = tmp_path / "r.zarr"
    with pytest.raises(NotFound, match="does not exist"):
        RunStore.resume(path)
    run = started(path)
    save(CheckpointStore(run.path), 1, {"u": field()})
    with pytest.raises(IncompleteRun, match="still going on"):
        RunStore.resume(path)
    pretend_dead(run.path)
    run.finish({})
    with pytest.raises(OutputExists, match="is complete"):
        RunStore.resume(path)


def test_a_reused_process_id_is_another_process(store):
    save(store, 1, {"u": field()})
    edit(store.run_path, pid_started=1)
    if os.path.exists("/proc/self/stat"):
        RunStore.resume(store.run_path)

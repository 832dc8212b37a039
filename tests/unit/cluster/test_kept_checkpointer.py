"""Fields on disk as their own checkpoint: whatever is committed is gone on from anywhere, with the bits of a run undisturbed."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from daskreg.cluster.checkpointer import Checkpointer
from daskreg.cluster.clients import embedded_client
from daskreg.cluster.kept_checkpointer import KeptCheckpointer, kept_reader
from daskreg.config import Config, Deformable
from daskreg.engine.report import SAVE
from daskreg.errors import RankLost, RunError
from daskreg.grid import Grid, Span
from daskreg.kernels.device import CPU
from daskreg.optimizers.sgd import SGD
from daskreg.optimizers.sgd.update import Momentum
from daskreg.similarity import LNCC, MI, MSE, NGF
from daskreg.storage import RunStore, kept_fields
from daskreg.storage.kept_fields import KeptCheckpoint, KeptFields, kept_folder, remove_kept
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.scratch import ScratchFolder
from daskreg.workflows.resume import tell_of_other_scratch
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks, whole
from tests.unit.engine.test_invariance import Asking

SHAPE = (33, 20, 22)


class Killed(BaseException):
    """As far as files can tell."""


class Killing(Asking):
    """Asks for a checkpoint every iteration, and dies when it has counted so many progress reports."""

    def __init__(self, after):
        super().__init__(SAVE)
        self.after = after

    def __call__(self, progress):
        self.after -= 1
        if self.after < 0:
            raise Killed


def recipe(loss, **given):
    stage = {"scales": (2, 1), "iterations": (4, 5), "tolerance": 0, "similarity": loss}
    return Config(stages=(Deformable(**{**stage, **given}),))


def case(config, state="disk", slab=8):
    return Registration(blobs(SHAPE, 1), blobs(SHAPE, 2), config, state=state, slab=slab)


@pytest.fixture
def run(tmp_path):
    """A new run's path."""
    grid = Grid(SHAPE)
    return RunStore.create(tmp_path / "run.zarr", fixed=grid, moving=grid).path


@contextmanager
def keeping(run, comm, scratch):
    with ScratchFolder(scratch) as folder:
        yield folder, KeptCheckpointer(run, folder, comm)


def killed(case, run, scratch, ranks, after):
    """Run until that many iterations have been reported, with a commit after each."""

    def begin(comm):
        with keeping(run, comm, scratch) as (folder, kept):
            save = Checkpointer(run, comm).save
            rank = case.rank(comm, "window" if ranks > 1 else "replicate", Killing(after), save)
            rank.scratch, rank.kept = folder.allocate, kept
            with pytest.raises((Killed, RankLost)):
                rank.run()

    on_ranks(ranks, begin)


def resumed(case, run, scratch, ranks, told=None):
    """The rest of it, on other ranks; ``told``: gets where each went on from."""

    def rest(comm):
        with (
            ScratchFolder(scratch) as folder,
            kept_reader(run, str(scratch), case.plan(comm.size, "replicate"), CPU, comm) as reader,
        ):
            rank = case.rank(comm, "replicate")
            rank.scratch = folder.allocate
            Checkpointer(run, comm).restore(rank, reader)
            if told is not None:
                told.append((rank.at.level, len(rank.at.losses)))
            return case.outcome(rank)

    return whole(on_ranks(ranks, rest))


LOSSES = {"mse": MSE(), "center": LNCC(radius=2, gradient="center"), "mi": MI(), "ngf": NGF()}
ALL = [(*way, state, loss) for way in [(1, 2), (3, 1), (2, 2)] for state in ("device", "host", "disk") for loss in LOSSES]
SOME = [(1, 2, "device", "mse"), (3, 1, "disk", "center"), (2, 2, "host", "mi"), (2, 1, "disk", "mi"), (2, 1, "device", "ngf")]


@pytest.mark.parametrize(("before", "after", "state", "loss"), [*SOME, *(pytest.param(*c, marks=pytest.mark.slow) for c in ALL)])
def test_a_killed_run_goes_on_from_its_last_sweep_with_the_same_bits(tmp_path, run, before, after, state, loss):
    config, told = recipe(LOSSES[loss]), []
    killed(case(config), run, tmp_path, before, 7)
    found = resumed(case(config, state, 5), run, tmp_path, after, told)
    assert_same_bits(found, case(config, "device").run(1))
    assert set(told) == {(1, 3)}  # four iterations of the first level and three of the second; the eighth is lost


@pytest.mark.parametrize(("state", "after"), [("device", 2), ("disk", 1)])
def test_a_killed_run_with_several_iterations_a_sweep_goes_on_from_its_last_sweep(tmp_path, run, state, after):
    config, told = recipe(LNCC(radius=1), iterations=(5, 12), iterations_per_sweep=4), []
    killed(case(config), run, tmp_path, 2, 13)
    assert_same_bits(resumed(case(config, state, 5), run, tmp_path, after, told), case(config, "device").run(1))
    assert set(told) == {(1, 8)}  # of the second level; what begins with its ninth iteration is lost


@pytest.mark.parametrize("kind", ["moments in 16 bits", "a direction that is kept"])
def test_whatever_the_optimizer_keeps(tmp_path, run, monkeypatch, kind):
    if kind == "moments in 16 bits":
        config = recipe(LNCC(radius=1), storage="moments")
    else:
        monkeypatch.setattr(Momentum, "restores_direction", False)
        config = recipe(LNCC(radius=1), optimizer=SGD())
    killed(case(config), run, tmp_path, 2, 7)
    for state in ("disk", "device"):
        assert_same_bits(resumed(case(config, state), run, tmp_path, 3), case(config, "device").run(1))


def test_a_rank_that_is_a_commit_ahead_goes_back_to_that_of_the_others(tmp_path, run, monkeypatch):
    commit, config, told = KeptFields.commit, recipe(MSE()), []

    def dies(fields, number, *rest):
        if number == 6 and fields.rank == 1:
            raise Killed
        commit(fields, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(KeptFields, "commit", dies)
        killed(case(config), run, tmp_path, 3, 99)
    assert_same_bits(resumed(case(config), run, tmp_path, 2, told), case(config, "device").run(1))
    assert set(told) == {(1, 2)}  # five commits, of which three in the first level


def folder_of(run):
    return kept_folder(Path(run).parent, CheckpointStore(run).kept())


def fields_of(run):
    return sorted(folder_of(run).glob("*/*.field"))


@pytest.mark.parametrize("lost", ["a field", "the commits", "a commit that is cut"])
def test_where_any_of_it_is_lost_the_run_goes_on_from_the_last_full_checkpoint(tmp_path, run, lost):
    config, told = recipe(MSE()), []
    killed(case(config), run, tmp_path, 2, 7)
    commits = sorted(folder_of(run).glob("*/rank-1-*.zip"))
    if lost == "a field":
        fields_of(run)[-1].unlink()
    for one in commits if lost != "a field" else []:
        one.write_bytes(one.read_bytes()[: 500 if "cut" in lost else 0])
    assert_same_bits(resumed(case(config), run, tmp_path, 2, told), case(config, "device").run(1))
    assert set(told) == {(1, 0)}


def test_fields_of_another_version_are_not_read_and_the_user_is_told(tmp_path, run, monkeypatch, caplog):
    config, told = recipe(MSE()), []
    with monkeypatch.context() as earlier:
        earlier.setattr(kept_fields, "READABLE", 2)
        killed(case(config), run, tmp_path, 2, 7)
        tell_of_other_scratch(run, str(tmp_path))
    assert not caplog.messages
    tell_of_other_scratch(run, str(tmp_path))
    assert "were kept by another version of daskreg" in caplog.messages[0]
    with embedded_client(1) as client:  # workers are asked, which may be on other machines
        tell_of_other_scratch(run, str(tmp_path), client)
        tell_of_other_scratch(run, str(tmp_path / "elsewhere"), client)
    _, again, elsewhere = (
        m for m in caplog.messages if "fields of the last iteration" in m
    )  # the client says where its dashboard is
    assert again == caplog.messages[0]
    assert "the fields of the last iteration are not in" in elsewhere
    assert "from the last full checkpoint" in caplog.messages[0]
    assert_same_bits(resumed(case(config), run, tmp_path, 2, told), case(config, "device").run(1))
    assert set(told) == {(1, 0)}


def test_a_plane_that_is_damaged_is_an_error(tmp_path, run):
    config = recipe(MSE())
    killed(case(config), run, tmp_path, 1, 7)
    for path in fields_of(run):
        content = np.fromfile(path, np.uint8)
        content[::4096] ^= 255
        content.tofile(path)
    with pytest.raises(RunError, match="is not what was written there"):
        resumed(case(config), run, tmp_path, 1)


@pytest.mark.parametrize("lacking", [(), ("fdatasync", "O_DIRECT")], ids=["Linux", "macOS"])
def test_only_files_of_the_fields_in_use_are_there_after_a_commit(tmp_path, run, monkeypatch, lacking):
    for name in lacking:
        monkeypatch.delattr(os, name)
    killed(case(recipe(MSE())), run, tmp_path, 2, 7)
    assert len(fields_of(run)) == 2 * 3  # of two ranks: u, m and v of the second level


def test_nothing_but_fields_and_commits_is_removed(tmp_path, run):
    killed(case(recipe(MSE())), run, tmp_path, 1, 7)
    folder = folder_of(run)
    [attempt] = folder.iterdir()
    (attempt / "mine.field").write_text("mine")
    (folder / "mine").mkdir()
    remove_kept(folder)
    assert sorted(p.name for p in folder.rglob("*")) == sorted(["mine", attempt.name, "mine.field"])


@pytest.mark.parametrize("identity", ["../../home", "", "A" * 32, "0" * 31])
def test_a_store_names_no_folder(tmp_path, run, identity):
    (Path(run) / "checkpoint").mkdir()
    CheckpointStore(run).keep(identity)
    assert CheckpointStore(run).kept() is None
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        kept_folder(tmp_path, identity)


@pytest.mark.parametrize("file", ["link", "other"])
def test_a_field_that_is_another_file_is_not_used(tmp_path, run, file):
    config, told = recipe(MSE()), []
    killed(case(config), run, tmp_path, 1, 7)
    field, other = fields_of(run)[0], tmp_path / "precious"
    other.write_bytes(b"x" * field.stat().st_size if file == "link" else b"x")
    field.unlink()
    field.symlink_to(other) if file == "link" else field.hardlink_to(other)
    before = other.read_bytes()
    assert_same_bits(resumed(case(config), run, tmp_path, 1, told), case(config, "device").run(1))
    assert set(told) == {(1, 0)}
    assert other.read_bytes() == before


def test_a_field_reads_what_was_committed_and_written_and_a_reader_what_was_committed(tmp_path):
    rng, plane = np.random.default_rng(0), (5, 7)
    old, new = rng.random((2, 3, 9, *plane), np.float32)
    with ScratchFolder(tmp_path) as scratch:
        fields = KeptFields(scratch, tmp_path / "kept", "a" * 32, 0, 1)
        field = fields.allocate(3, Span(2, 11), plane)
        field.write(Span(2, 11), old)
        fields.commit(1, {"losses": []}, Span(2, 11), {"u": field})
        field.write(Span(4, 7), new[:, 2:5])
        found, mixed = np.empty_like(old), old.copy()
        mixed[:, 2:5] = new[:, 2:5]
        field.read(Span(2, 11), found)
        np.testing.assert_array_equal(found, mixed)
        [commit] = KeptCheckpoint.latest(tmp_path / "kept", lambda state: 0).commits
        commit.open(scratch)["u"].read(Span(2, 11), found)
        np.testing.assert_array_equal(found, old)

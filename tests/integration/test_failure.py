"""What goes wrong in the middle of a run: it ends within seconds, says who and where, and can go on to the same result."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import daskreg
from daskreg import MSE, Affine, Deformable, Moments
from daskreg.cli import main
from daskreg.cluster import rank_actor
from daskreg.comm import Timeouts
from daskreg.config import Config
from daskreg.errors import ConfigError, OutOfSpace, RankLost, VoxelError
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, write_image
from tests.integration.workers import SOCKETS, addresses, all_started, cluster, processes, require, run, same
from tests.phantoms import known_warp_pair

pytestmark = [SOCKETS, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]
ROOT = Path(__file__).parents[2]
SHAPE = (40, 32, 32)
ITERATIONS = 200
STAGES = [Moments(), Deformable(similarity=MSE(), scales=(2, 1), iterations=(20, ITERATIONS), tolerance=0)]
OFTEN = 0.0  # seconds between two checkpoints: one an iteration, or a run whose kernels are compiled is over before the first
SOON = 0.05  # soon enough for a run of three workers


@pytest.fixture(scope="module")
def workers():
    with cluster(3) as found:
        yield found


@pytest.fixture
def client(workers):
    """Three workers that are there and idle: new ones have taken the place of those that were killed."""
    assert all_started(workers, 3)
    yield workers
    assert_idle(workers)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    fixed, moving, _ = known_warp_pair(SHAPE, 2.0, 0)
    for name, voxels in (("fixed", fixed), ("moving", moving), ("other", moving[:-1])):
        write_image(folder / f"{name}.zarr", voxels, Grid(voxels.shape))
    moving[-3, 5, 5] = np.nan
    write_image(folder / "nan.zarr", moving, Grid(SHAPE))
    return folder


@pytest.fixture(scope="module")
def undisturbed(workers, images):
    """What every run in this file comes to."""
    return run(workers, images / "fixed.zarr", images / "moving.zarr", STAGES, workers=1)


def started(client, images, **options):
    return run(client, images / "fixed.zarr", images / "moving.zarr", STAGES, **options)


def assert_idle(client):
    """No rank is left: every worker takes a task at once, and none has a rank of a run."""
    futures = [client.submit(os.getpid, workers=[a], pure=False, allow_other_workers=False) for a in addresses(client)]
    assert len(client.gather(futures)) == len(futures)
    assert not any(client.processing().values())
    assert not any(client.run(ranks).values())


def ranks():
    return rank_actor.running()


class Once:
    """Watches a run; acts at the first report from an iteration of the last level on, once ``when`` holds."""

    def __init__(self, act, iteration=1, when=lambda: True):
        self.act, self.iteration, self.when, self.at = act, iteration, when, None

    def __call__(self, progress):
        last = progress.scale == 1 and progress.iteration >= self.iteration
        if self.at is None and last and self.when():
            self.at = time.monotonic()
            self.act()


def checkpointed(path):
    return CheckpointStore(str(path)).latest() is not None


# --- a worker dies ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chance(request):
    """A random choice, made known where the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    return random.Random(seed)


@pytest.mark.parametrize(("comm", "kept"), [("tcp", True), ("ucx", False)])
def test_a_killed_worker_is_named_and_a_run_with_a_checkpoint_is_kept(client, images, tmp_path, chance, comm, kept):
    require(comm)
    path, rank, iteration = tmp_path / "run.zarr", chance.randrange(3), chance.randrange(1, 100)
    there, pids = addresses(client), processes(client)
    ready = (lambda: checkpointed(path)) if kept else (lambda: True)
    watch = Once(lambda: os.kill(pids[rank], signal.SIGKILL), iteration, ready)
    with pytest.raises(RankLost, match=rf"rank {rank} \(127\.0\.0\.1, worker {there[rank]}\) was lost") as caught:
        started(client, images, output=path, workers=3, comm=comm, checkpoint=SOON if kept else None, progress=watch)
    assert path.exists() == kept
    assert ("--resume" in str(getattr(caught.value, "__notes__", ""))) == kept


@pytest.mark.parametrize("comm", ["ucx", pytest.param("tcp", marks=pytest.mark.slow)])
def test_a_run_continues_without_a_killed_worker(client, images, undisturbed, tmp_path, chance, caplog, comm):
    require(comm)
    path, rank, iteration = tmp_path / "run.zarr", chance.randrange(3), chance.randrange(1, 100)
    pids = processes(client)
    watch = Once(lambda: os.kill(pids[rank], signal.SIGKILL), iteration, lambda: checkpointed(path))
    found = started(client, images, output=path, workers=3, comm=comm, checkpoint=SOON, retries=1, progress=watch)
    assert watch.at is not None
    assert f"rank {rank} (" in caplog.text
    assert "Starting again from the last checkpoint" in caplog.text
    assert same(undisturbed, found).bits, same(undisturbed, found).line()


PHASES = {  # at the first report that answers
    "the linear stage": lambda p: p.stage == "affine",
    "the coarse level": lambda p: p.scale == 2 and p.stage == "deformable" and p.iteration >= 5,
    "the start of the fine level": lambda p: p.scale == 1,
    "the middle of the fine level": lambda p: p.scale == 1 and p.iteration >= ITERATIONS // 2,
    "the end of the fine level, or writing": lambda p: p.scale == 1 and p.iteration >= ITERATIONS,
}
LONGER = [STAGES[0], Affine(similarity=MSE(), scales=(2,), iterations=(20,)), STAGES[1]]


@pytest.fixture(scope="module")
def longer(workers, images):
    """What every run of the matrix comes to."""
    return run(workers, images / "fixed.zarr", images / "moving.zarr", LONGER, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("comm", ["tcp", "ucx"])
@pytest.mark.parametrize("victim", range(3))
@pytest.mark.parametrize("phase", PHASES)
def test_whoever_is_killed_whenever_the_result_is_the_same(client, images, longer, tmp_path, phase, victim, comm):
    require(comm)
    pids, killed = processes(client), []

    def watch(progress):
        if not killed and PHASES[phase](progress):
            killed.append(victim)
            os.kill(pids[victim], signal.SIGKILL)

    pair = images / "fixed.zarr", images / "moving.zarr"
    options = {"workers": 3, "comm": comm, "checkpoint": 0.1, "retries": 2, "progress": watch}
    found = run(client, *pair, LONGER, output=tmp_path / "run.zarr", **options)
    assert killed
    assert same(longer, found).bits, same(longer, found).line()


# --- a worker is silent, or slow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comm", ["tcp", pytest.param("ucx", marks=pytest.mark.slow)])
def test_a_stopped_worker_is_lost_after_the_deadline(client, images, undisturbed, comm):
    """Kernels are compiled by then, or others would wait for the compiler as long."""
    require(comm)
    there, pids = addresses(client), processes(client)
    watch = Once(lambda: os.kill(pids[2], signal.SIGSTOP))
    try:
        with pytest.raises(RankLost, match=rf"rank 2 \(127\.0\.0\.1, worker {there[2]}\) was silent"):
            started(client, images, workers=3, comm=comm, deadline=3.0, progress=watch)
    finally:
        os.kill(pids[2], signal.SIGCONT)


class Delayed:
    """In place of the loop's gradient, on one worker: now and then something else takes the processor."""

    def __init__(self, seconds):
        from daskreg.engine.loop import Loop

        self.real, self.seconds = Loop.iteration, seconds

    def __call__(self, loop, state, backend, judge, t):
        if t == 1 and loop.level.scale == 1:
            time.sleep(self.seconds)
            self.seconds = 0
        return self.real(loop, state, backend, judge, t)


def delay(seconds):
    from daskreg.engine.loop import Loop

    delayed = Delayed(seconds)
    Loop.iteration = lambda loop, *arguments: delayed(loop, *arguments)


def in_time():
    from daskreg.engine.loop import Loop

    Loop.iteration = Loop.iteration.__closure__[0].cell_contents.real


def warn_after(seconds):
    rank_actor.Timeouts = partial(Timeouts, warn_after=seconds)


def warn_as_usual():
    rank_actor.Timeouts = Timeouts


@pytest.mark.parametrize("comm", ["ucx", pytest.param("tcp", marks=pytest.mark.slow)])
def test_a_slow_worker_is_reported_and_not_lost(client, images, undisturbed, caplog, comm):
    require(comm)
    there = addresses(client)
    client.run(warn_after, 0.2)
    client.run(delay, 2.0, workers=there[1:2])
    try:
        found = started(client, images, workers=3, comm=comm)
    finally:
        client.run(warn_as_usual)
        client.run(in_time, workers=there[1:2])
    assert f"rank 1 (127.0.0.1, worker {there[1]}) has kept rank " in caplog.text
    assert same(undisturbed, found).bits


# --- the driver dies, or is asked to stop ---------------------------------------------------------------------------------


@pytest.fixture
def command(images, tmp_path):
    """A registration by the command line, in a process group of its own, that has made a checkpoint; its process and its run."""
    processes = []

    def start(workers):
        recipe, path = tmp_path / "recipe.yaml", tmp_path / "run.zarr"
        recipe.write_text(Config.of_stages(STAGES).dump())
        arguments = ["register", images / "fixed.zarr", images / "moving.zarr", "-o", path, "--config", recipe]
        arguments += ["--workers", workers, "--checkpoint-every", OFTEN]
        line = [sys.executable, "-m", "daskreg.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        processes.append(child)
        end = time.monotonic() + 240
        while not checkpointed(path) and child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert child.poll() is None, child.communicate()[1]
        return child, path

    yield start
    for child in processes:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def test_a_run_whose_client_and_workers_were_killed_resumes_on_others(client, images, undisturbed, command):
    child, path = command(1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    found = daskreg.register(output=path, resume=True, client=client, workers=3, comm="tcp", checkpoint=None)
    assert same(undisturbed, found).bits


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_that_resumes_on_others(client, images, undisturbed, command):
    child, path = command(2)
    before = CheckpointStore(str(path)).latest()
    os.kill(child.pid, signal.SIGTERM)
    _, reported = child.communicate(timeout=240)
    assert child.returncode == 143
    assert f"--resume -o {path}" in reported
    after = CheckpointStore(str(path)).latest()
    assert after[0] > before[0]
    assert len(after[1]["losses"]) >= len(before[1]["losses"])
    found = daskreg.register(output=path, resume=True, client=client, workers=1)
    assert same(undisturbed, found).bits


# --- the disk is full ---------------------------------------------------------------------------------------------------


def fill_disk():
    """On one worker: from the second checkpoint on there is no room for a plane."""
    from daskreg.storage.runs import checkpoint

    real = checkpoint._write_plane
    checkpoint._write_plane = lambda array, where, *rest: (
        real(array, where, *rest) if "/checkpoint/1/" in where else (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    checkpoint._write_plane.real = real


def free_disk():
    from daskreg.storage.runs import checkpoint

    checkpoint._write_plane = checkpoint._write_plane.real


def test_a_full_disk_keeps_the_last_checkpoint(client, images, undisturbed, tmp_path):
    path, one = tmp_path / "run.zarr", addresses(client)[1:2]
    client.run(fill_disk, workers=one)
    try:
        with pytest.raises(OutOfSpace, match="free space") as caught:
            started(client, images, output=path, workers=3, comm="tcp", checkpoint=OFTEN)
    finally:
        client.run(free_disk, workers=one)
    assert "--resume" in str(caught.value.__notes__)
    assert CheckpointStore(str(path)).latest()[0] == 1
    found = daskreg.register(output=path, resume=True, client=client, workers=2, comm="tcp")
    assert same(undisturbed, found).bits


# --- what cannot be resumed -----------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def unfinished(workers, images, tmp_path_factory):
    """A run that stopped after a checkpoint."""
    path = tmp_path_factory.mktemp("unfinished") / "run.zarr"
    assert all_started(workers, 3)
    pids = processes(workers)
    watch = Once(lambda: os.kill(pids[0], signal.SIGKILL), 1, lambda: checkpointed(path))
    with pytest.raises(RankLost):
        started(workers, images, output=path, workers=1, checkpoint=OFTEN, progress=watch)
    return path


@pytest.fixture
def stopped(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "run.zarr")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"config": [MSE]}, "no stage"),
        ({"config": [*STAGES[:1], STAGES[1].model_copy(update={"maximum_step": 0.2})]}, "another configuration"),
        ({"moving": "other.zarr"}, r"another moving image \(\(40, 32, 32\), not \(39, 32, 32\)\)"),
        ({"fixed": "other.zarr"}, "another fixed image"),
    ],
)
def test_a_run_does_not_resume_with_another_configuration_or_image(client, images, stopped, given, words):
    given = {k: str(images / v) if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(ConfigError, match=words):
        daskreg.register(**given, output=stopped, resume=True, client=client)
    assert checkpointed(stopped)


def test_a_run_that_has_no_checkpoint_begins_again(client, undisturbed, stopped):
    shutil.rmtree(stopped / "checkpoint")
    found = daskreg.register(output=stopped, resume=True, client=client, workers=2, comm="tcp")
    assert same(undisturbed, found).bits


def test_a_run_resumes_a_second_time(client, undisturbed, stopped):
    found = daskreg.register(output=stopped, resume=True, client=client, workers=2, comm="tcp")
    assert same(undisturbed, found).bits


# --- a voxel is bad -------------------------------------------------------------------------------------------------------


def test_an_invalid_voxel_on_one_rank_is_not_reported_as_a_lost_rank(client, images, tmp_path, monkeypatch, capsys):
    """It lies in the last block; the others are informed of it, and the sentence is about the voxel."""
    path = tmp_path / "run.zarr"
    with pytest.raises(VoxelError, match=r"the moving image .* is NaN or infinite at 1 voxel;"):
        run(client, images / "fixed.zarr", images / "nan.zarr", STAGES, output=path, workers=3, comm="tcp")
    assert not path.exists()
    arguments = ["--cluster", client.scheduler.address, "--workers", 3, "-o", path]
    monkeypatch.setattr(sys, "argv", ["daskreg", "register", *map(str, [images / "fixed.zarr", images / "nan.zarr", *arguments])])
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert ended.value.code == 2
    assert "NaN or infinite at 1 voxel;" in capsys.readouterr().err

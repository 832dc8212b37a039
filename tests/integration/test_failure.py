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
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

import daskreg
from daskreg import MSE, Deformable, Moments
from daskreg.cli import main
from daskreg.cluster import drive
from daskreg.config import Config
from daskreg.errors import ConfigError, IncompleteRun, OutOfSpace, OutputExists, RankLost, VoxelError
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, write_image
from tests.integration.workers import COMMS, SOCKETS, addresses, cluster, processes, require, run, same
from tests.phantoms import known_warp_pair

pytestmark = [SOCKETS, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]
ROOT = Path(__file__).parents[2]
SHAPE = (40, 32, 32)
ITERATIONS = 300
STAGES = [Moments(), Deformable(similarity=MSE(), scales=(2, 1), iterations=(20, ITERATIONS), tolerance=0)]
OFTEN = 0.2  # seconds between two checkpoints


@pytest.fixture(scope="module")
def gang():
    with cluster(3) as found:
        yield found


@pytest.fixture
def client(gang):
    """Three workers that are there and idle: new ones have taken the place of those that were killed."""
    gang.wait_for_workers(3, timeout=120)
    yield gang
    assert_idle(gang)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    fixed, moving, _ = known_warp_pair(SHAPE, 2.0, 0)
    for name, voxels in (("fixed", fixed), ("moving", moving), ("other", moving[:-1])):
        write_image(folder / f"{name}.zarr", voxels, Grid(voxels.shape))
    moving[-3, 5, 5] = np.nan
    write_image(folder / "nan.nii.gz", moving, Grid(SHAPE))
    return folder


@pytest.fixture(scope="module")
def undisturbed(gang, images):
    """What every run in this file comes to."""
    return run(gang, images / "fixed.zarr", images / "moving.zarr", STAGES, workers=1)


def started(client, images, **options):
    return run(client, images / "fixed.zarr", images / "moving.zarr", STAGES, **options)


def assert_idle(client):
    """No rank is left: every worker takes a task at once, and none has a seat or memory of a run."""
    futures = [client.submit(os.getpid, workers=[a], pure=False, allow_other_workers=False) for a in addresses(client)]
    assert len(client.gather(futures)) == len(futures)
    assert not any(client.processing().values())
    assert not any(client.run(seats).values())


def seats():
    return list(drive._seats)


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
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize(("comm", "kept"), [("tcp", True), ("ucx", False)])
def test_a_killed_worker_is_named_and_the_run_kept_if_it_can_go_on(client, images, tmp_path, chance, comm, kept):
    require(comm)
    path, rank, iteration = tmp_path / "run.zarr", chance.randrange(3), chance.randrange(1, 100)
    there, pids = addresses(client), processes(client)
    ready = (lambda: checkpointed(path)) if kept else (lambda: True)
    watch = Once(lambda: os.kill(pids[rank], signal.SIGKILL), iteration, ready)
    with pytest.raises(RankLost, match=rf"rank {rank} \(127\.0\.0\.1, worker {there[rank]}\)") as caught:
        started(client, images, output=path, workers=3, comm=comm, checkpoint=OFTEN if kept else None, progress=watch)
    assert time.monotonic() - watch.at < 60  # the deadline is ten minutes
    assert path.exists() == kept
    assert ("--resume" in str(getattr(caught.value, "__notes__", ""))) == kept


@pytest.mark.parametrize("comm", COMMS)
def test_a_run_goes_on_without_a_killed_worker(client, images, undisturbed, tmp_path, chance, caplog, comm):
    require(comm)
    path, rank, iteration = tmp_path / "run.zarr", chance.randrange(3), chance.randrange(1, 100)
    pids = processes(client)
    watch = Once(lambda: os.kill(pids[rank], signal.SIGKILL), iteration, lambda: checkpointed(path))
    found = started(client, images, output=path, workers=3, comm=comm, checkpoint=OFTEN, retries=1, progress=watch)
    assert watch.at is not None
    assert f"rank {rank} (" in caplog.text
    assert "Starting again from the last checkpoint" in caplog.text
    assert same(undisturbed, found).bits, same(undisturbed, found).line()


# --- a worker is silent, or slow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comm", COMMS)
def test_a_worker_that_stands_still_is_lost_after_the_deadline(client, images, tmp_path, comm):
    require(comm)
    there, pids = addresses(client), processes(client)
    watch = Once(lambda: os.kill(pids[2], signal.SIGSTOP))
    try:
        with pytest.raises(RankLost, match=rf"rank 2 \(127\.0\.0\.1, worker {there[2]}\) was silent"):
            started(client, images, workers=3, comm=comm, deadline=2.0, progress=watch)
        assert time.monotonic() - watch.at < 60
    finally:
        os.kill(pids[2], signal.SIGCONT)

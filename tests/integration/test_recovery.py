"""Workers are killed, one or several at once, in every phase of a run: within 15 s it goes on, or ends with one sentence."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from daskreg import MSE, Affine, Deformable, Moments, Search
from daskreg.cluster import embedded_client, rank_actor
from daskreg.cluster import run as cluster_run
from daskreg.cluster.worker_calls import call_each
from daskreg.errors import RankLost
from daskreg.grid import Grid
from daskreg.storage import write_image
from daskreg.workflows import ready_run as workflow
from daskreg.workflows.demo import demo_pair
from tests.integration.command import Command
from tests.integration.workers import SOCKETS, addresses, all_started, cluster, processes, require, run, same
from tests.phantoms import known_warp_pair

pytestmark = [SOCKETS, pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]
SHAPE = (40, 32, 32)
ITERATIONS = 100
LIMIT = 15.0  # seconds from a death until iterations go on, or the run ends
CHECKPOINTS = 0.1  # seconds between two
COMMS = ["tcp", "ucx"]
STAGES = [
    Moments(),
    Search(rotations="none"),
    Affine(similarity=MSE(), scales=(2,), iterations=(20,)),
    Deformable(similarity=MSE(), scales=(2, 1), iterations=(20, ITERATIONS), tolerance=0),
]


@pytest.fixture(scope="module")
def clusters():
    """The cluster in use, and how it is made."""
    with ExitStack() as stack:
        yield Clusters(stack)


class Clusters:
    """Three workers, started anew when they die; another cluster where Dask has given one of them up."""

    def __init__(self, stack):
        self.stack = stack
        self.client = stack.enter_context(cluster(3))

    def whole(self):
        """A client of three workers that are there, started to the end."""
        if not all_started(self.client, 3):
            self.stack.close()
            self.client = self.stack.enter_context(cluster(3))
            assert all_started(self.client, 3)
        return self.client


@pytest.fixture
def client(clusters):
    """Three workers that are there and idle: new ones have taken the place of those that were killed."""
    found = clusters.whole()
    yield found
    assert not any(call_each(found, addresses(found), rank_actor.running, seconds=10.0).values())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, voxels in zip(("fixed", "moving"), known_warp_pair(SHAPE, 2.0, 0)[:2], strict=True):
        write_image(folder / f"{name}.zarr", voxels, Grid(SHAPE))
    return folder / "fixed.zarr", folder / "moving.zarr"


@pytest.fixture(scope="module")
def undisturbed(clusters, images):
    return run(clusters.whole(), *images, STAGES, workers=1)


@dataclass
class Recovery:
    """Watches a run: when workers died, and when iterations went on after it was said that it starts again."""

    log: pytest.LogCaptureFixture
    deaths: Path
    begun: float = field(default_factory=time.time)
    went_on: float | None = None

    def __call__(self, progress):
        if self.went_on is None and "Starting again" in self.log.text:
            self.went_on = time.time()

    def died(self):
        """Seconds since the epoch of the last death of the first attempt."""
        return max(float(file.read_text()) for file in self.deaths.iterdir())

    def seconds(self):
        """From the death until iterations went on, or the run ended where none were left."""
        return (self.went_on or time.time()) - self.died()


@pytest.fixture
def recovery(caplog, tmp_path):
    (tmp_path / "deaths").mkdir()
    return Recovery(caplog, tmp_path / "deaths")


def recovered(client, images, undisturbed, tmp_path, recovery, comm, progress=None):
    """The run ends with the bits of the undisturbed one, after iterations went on in time."""
    options = {"workers": 3, "comm": comm, "checkpoint": CHECKPOINTS, "retries": 2, "progress": progress or recovery}
    found = run(client, *images, STAGES, output=tmp_path / "run.zarr", **options)
    seconds = recovery.seconds()
    print(f"went on after {seconds:.1f} s")  # noqa: T201
    assert seconds < LIMIT
    assert same(undisturbed, found).bits, same(undisturbed, found).line()


# --- killed from outside, at a report of progress ------------------------------------------------------------------------

REPORTS = {  # at the first report that answers
    "the linear stage": lambda p: p.stage == "affine",
    "the coarse level": lambda p: p.scale == 2 and p.stage == "deformable" and p.iteration >= 5,
    "the start of the fine level": lambda p: p.scale == 1,
    "the middle of the fine level": lambda p: p.scale == 1 and p.iteration >= ITERATIONS // 2,
    "the end of the fine level, or writing": lambda p: p.scale == 1 and p.iteration >= ITERATIONS,
}
SEVERAL = [*combinations(range(3), 2), (0, 1, 2)]


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("victims", SEVERAL, ids=lambda v: "".join(map(str, v)))
@pytest.mark.parametrize("report", REPORTS)
def test_several_killed_at_once(client, images, undisturbed, tmp_path, recovery, report, victims, comm):
    require(comm)
    pids = processes(client)

    def watch(progress):
        recovery(progress)
        if not list(recovery.deaths.iterdir()) and REPORTS[report](progress):
            (recovery.deaths / "all").write_text(str(time.time()))
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)

    recovered(client, images, undisturbed, tmp_path, recovery, comm, watch)


# --- killed in the middle of something ------------------------------------------------------------------------------------


def die(folder):
    """This process, at once."""
    Path(folder, str(os.getpid())).write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(owner, name, folder, calls=1):
    """This worker's process, at the so manieth call of something."""
    real, left = getattr(owner, name), [calls]

    def dies(*arguments, **given):
        left[0] -= 1
        if left[0] <= 0:
            die(folder)
        return real(*arguments, **given)

    setattr(owner, name, dies)


def in_creating(folder):
    die_in(rank_actor, "create_actor", folder)


def in_connecting(folder):
    die_in(rank_actor, "connect_actor", folder)


def in_reading(folder):
    from daskreg.cluster import rank_job

    die_in(rank_job, "read_images", folder)


def in_search(folder):
    from daskreg.engine.search_lattice import SearchLattice

    die_in(SearchLattice, "correlate", folder)


def in_a_collective(folder):
    from daskreg.comm import Communicator

    die_in(Communicator, "gather", folder, 120)


def in_an_exchange(folder):
    from daskreg.comm import Communicator

    die_in(Communicator, "send", folder, 150)


def in_writing_a_checkpoint(folder):
    from daskreg.storage.runs import checkpoint

    die_in(checkpoint, "_write_plane", folder, 20)


def in_measuring(folder):
    from daskreg.cluster import rank_job

    die_in(rank_job, "_metrics", folder)


def in_collecting_a_row(folder):
    from daskreg.cluster import result_writer

    die_in(result_writer, "_collect_row", folder)


def in_writing_the_result(folder):
    """The one that writes; the result has a single row of chunks."""
    from daskreg.cluster.result_writer import ResultWriter

    die_in(ResultWriter, "write", folder)


INSIDE = [in_creating, in_connecting, in_reading, in_search, in_a_collective, in_an_exchange, in_writing_a_checkpoint,
          in_measuring, in_collecting_a_row, in_writing_the_result]  # fmt: skip


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("victims", [(1,), (0, 1)], ids=["one", "two"])
@pytest.mark.parametrize("place", INSIDE, ids=lambda place: place.__name__)
def test_killed_inside(client, images, undisturbed, tmp_path, recovery, place, victims, comm):
    require(comm)
    there = addresses(client)
    client.run(place, str(recovery.deaths), workers=[there[victim] for victim in victims])
    recovered(client, images, undisturbed, tmp_path, recovery, comm)


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("victims", [(1,), (0, 1, 2)], ids=["one", "all"])
@pytest.mark.parametrize(
    "moment", ["before the group is formed", "before the ranks are started", "at release", "at the pyramids"]
)
def test_killed_between(client, images, undisturbed, tmp_path, recovery, monkeypatch, moment, victims, comm):
    require(comm)
    owner, name = {
        "before the group is formed": (cluster_run, "form_group"),
        "before the ranks are started": (cluster_run, "start_actors"),
        "at release": (cluster_run, "release"),
        "at the pyramids": (workflow, "build_pyramids"),
    }[moment]
    real, pids = getattr(owner, name), processes(client)

    def killing(*arguments):
        if not list(recovery.deaths.iterdir()):
            (recovery.deaths / "all").write_text(str(time.time()))
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)
        return real(*arguments)

    monkeypatch.setattr(owner, name, killing)
    recovered(client, images, undisturbed, tmp_path, recovery, comm)


# --- no attempt is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("victims", [(2,), (0, 1)], ids=["one", "two"])
def test_without_another_attempt_one_sentence_names_the_checkpoint(client, images, tmp_path, victims, comm):
    require(comm)
    pids, killed = processes(client), []

    def watch(progress):
        if not killed and REPORTS["the middle of the fine level"](progress):
            killed.append(time.monotonic())
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)

    options = {"workers": 3, "comm": comm, "checkpoint": 0.0, "retries": 0, "progress": watch}
    with pytest.raises(RankLost, match=r"rank \d .* was lost") as caught:
        run(client, *images, STAGES, output=tmp_path / "run.zarr", **options)
    assert time.monotonic() - killed[0] < LIMIT
    assert f"--resume -o {tmp_path / 'run.zarr'}" in str(caught.value.__notes__)


# --- the command: its start, its stop and its end -------------------------------------------------------------------------

SEARCH = "stages:\n- {stage: search, rotations: fine}\n"
LINEAR = "- {stage: affine, similarity: {kind: %s}, scales: [1], iterations: [30], tolerance: 0}\n"
SHORT = "stages:\n" + LINEAR % "mi"
LONG = "stages:\n" + (LINEAR % "mi" + LINEAR % "mse") * 50  # minutes: each loss has its best map elsewhere


@pytest.fixture
def command(tmp_path):
    """Starts a registration of the bundled pair with a configuration, on so many workers."""

    def start(recipe, workers, *options):
        (tmp_path / "recipe.yaml").write_text(recipe)
        options = ("--config", tmp_path / "recipe.yaml", "--workers", workers, *options)
        return Command(*demo_pair(3), tmp_path / "run.zarr", *options)

    return start


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("victims", [1, 2])
def test_a_worker_killed_while_it_starts_is_one_sentence(command, victims, seconds):
    """Or none, where another one has taken its place."""
    with command(SHORT, 2) as run:
        run.wait_until(lambda: len(run.workers()) >= victims)
        time.sleep(seconds)
        for pid in run.workers()[:victims]:
            os.kill(pid, signal.SIGKILL)
        code, said, took = run.ended(120)
    print(f"exit {code} {took:.1f} s after the kill: {said}")  # noqa: T201
    assert "Traceback" not in said
    if code:
        assert took < LIMIT
        assert code == 1
        lost = r"daskreg: (the worker processes could not be started|rank \d .* was lost|worker .* was lost)"
        assert [bool(re.match(lost, line)) for line in said.splitlines() if line.startswith("daskreg: ")] == [True], said
        assert not run.path.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_in_a_long_search_ends_in_time(command, workers):
    with command(SEARCH, workers) as run:
        run.wait_until(lambda: "ranks over" in run.said() if workers > 1 else "dashboard" in run.said())
        time.sleep(2.0)
        ends_in_time(run, "a search is not saved half-way")


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_in_long_linear_work_ends_in_time(command, workers):
    with command(LONG, workers, "--checkpoint-every", 0.1) as run:
        run.wait_until(lambda: run.checkpoint > 1)  # a linear level has ended, and the next has begun
        ends_in_time(run, "--resume -o")


def ends_in_time(run, words):
    """After SIGTERM, with these words."""
    os.kill(run.process.pid, signal.SIGTERM)
    code, said, took = run.ended(120)
    print(f"ended {took:.1f} s after SIGTERM: {said}")  # noqa: T201
    assert code == 143
    assert words in said
    assert took < 20.0


def test_a_cluster_of_our_own_closes_although_a_worker_was_lost():
    with embedded_client(2) as client:
        os.kill(processes(client)[0], signal.SIGKILL)
        begun = time.monotonic()
    assert time.monotonic() - begun < LIMIT


def test_a_worker_that_does_not_end_is_killed(caplog):
    """It is stopped: it neither answers nor ends by itself."""
    with embedded_client(2) as client:
        silent = processes(client)[0]
        os.kill(silent, signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun < LIMIT
    assert not psutil.pid_exists(silent) or psutil.Process(silent).status() == psutil.STATUS_ZOMBIE

"""Several GPUs, through dask-cuda as a user starts it: the bits of one, over UCX and TCP, also where workers are killed.

``DASKREG_REHEARSAL=1`` runs the same with worker processes on a CPU, on smaller images.
"""

import os
import signal
import time

import numpy as np
import pytest

import daskreg
from daskreg import MSE
from daskreg.cluster import embedded_client
from daskreg.config import Affine, Config, Deformable
from daskreg.grid import Grid
from daskreg.kernels.device import gpus
from daskreg.similarity import LNCC, MI, NGF
from daskreg.storage import RunStore, write_image
from daskreg.workflows.result import Result
from tests.integration.command import Command
from tests.integration.workers import processes
from tests.phantoms import blobs

pytestmark = pytest.mark.gpu
REHEARSAL = bool(os.environ.get("DASKREG_REHEARSAL"))
# iterations: enough for a kill in the middle; the command also has to make checkpoints before
DEVICE, SHAPE, ITERATIONS, MORE = ("cpu", (40, 32, 32), 60, 300) if REHEARSAL else ("cuda", (96, 80, 72), 4000, 16000)
SLOWER = {} if REHEARSAL else {"tcp": 8}  # times; planes go through the hosts' memory
LOSSES = {"lncc": LNCC(), "center": LNCC(gradient="center"), "mi": MI(), "ngf": NGF()}
COMMS = ["ucx", "tcp"] if REHEARSAL else ["ucx", "nccl", "tcp"]
NUMBERS = [pytest.param(n, id=f"gpus{n}") for n in (2, 4)]
OFTEN = 0.3  # seconds between two checkpoints
RECOVERY = 15.0  # seconds within which iterations go on after a worker died
STOP = 30.0  # seconds within which a command ends after SIGTERM


def configuration(name):
    """Of a short run with a loss, or of one that lasts for so many iterations."""
    if name in LOSSES:
        return Config(
            stages=(
                Affine(scales=(2,), iterations=(10,)),
                Deformable(similarity=LOSSES[name], scales=(2, 1), iterations=(20, 12)),
            )
        )
    return Config(
        stages=(
            Affine(similarity=MSE(), scales=(2,), iterations=(20,), tolerance=0),
            Deformable(similarity=LNCC(), scales=(2, 1), iterations=(20, name), tolerance=0),
        )
    )


def require(number):
    """Skip where there are fewer GPUs."""
    if not REHEARSAL:
        if gpus() < number:
            pytest.skip(f"this machine has {gpus()} GPUs")
        pytest.importorskip("dask_cuda")


@pytest.fixture(scope="module", params=NUMBERS)
def client(request):
    """A worker for each of so many GPUs, encrypted, as ``--cluster cuda`` starts them."""
    require(request.param)
    with embedded_client(request.param, None, DEVICE) as found:
        yield found


@pytest.fixture
def workers(client):
    """All of them: new ones have taken the place of those that were killed."""
    number = len(client.cluster.worker_spec)
    client.wait_for_workers(number, timeout=120)
    return number


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k, name in enumerate(("fixed.zarr", "moving.zarr")):
        write_image(folder / name, blobs(SHAPE, k + 1), Grid(SHAPE))
    for comm in COMMS:
        (folder / f"{comm}.yaml").write_text(configuration(iterations(MORE, comm)).dump())
    return folder


def iterations(of_a_fast_link, comm):
    """As many as take about the same time over any link."""
    return of_a_fast_link // SLOWER.get(comm, 1)


def registered(images, config, **given):
    options = {"checkpoint": None, "device": DEVICE, **given}
    return bits(daskreg.register(images / "fixed.zarr", images / "moving.zarr", config, **options))


def bits(result):
    return np.asarray(result.displacement)


@pytest.fixture(scope="module")
def alone(images):
    """What one GPU comes to, by configuration."""
    known = {}

    def displacement(name):
        if name not in known:
            known[name] = registered(images, configuration(name))
        return known[name]

    return displacement


# --- the bits of one GPU --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_several_gpus_give_the_bits_of_one(client, workers, images, alone, loss, comm):
    for residency in ("replicate", "window", "ring"):
        found = registered(images, configuration(loss), client=client, workers=workers, residency=residency, comm=comm)
        np.testing.assert_array_equal(found, alone(loss))


# --- a worker is killed ---------------------------------------------------------------------------------------------------

PHASES = {
    "the linear stage": lambda p, last: p.stage == "affine",
    "the middle of the fine level": lambda p, last: p.scale == 1 and p.iteration >= last // 3,
    "the end of the fine level, or writing": lambda p, last: p.scale == 1 and p.iteration >= last,
}


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("victims", [(0,), (0, -1)], ids=["one", "two"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_goes_on_without_killed_workers(client, workers, images, alone, tmp_path, phase, victims, comm):
    pids, killed, resumed, last = processes(client), [], [], iterations(ITERATIONS, comm)

    def watch(progress):
        if killed and not resumed and time.monotonic() > killed[0] + 0.5:
            resumed.append(time.monotonic() - killed[0])
        if not killed and PHASES[phase](progress, last):
            killed.append(time.monotonic())
            for victim in victims:
                os.kill(pids[victim], signal.SIGKILL)

    options = {"workers": workers, "comm": comm, "checkpoint": OFTEN, "retries": 2, "progress": watch}
    found = registered(images, configuration(last), client=client, output=tmp_path / "run.zarr", **options)
    assert killed
    assert not resumed or resumed[0] < RECOVERY
    print(f"{phase}, {len(victims)} of {workers}, {comm}: went on after {resumed} s")  # noqa: T201
    np.testing.assert_array_equal(found, alone(last))


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=NUMBERS)
def command(request, images, tmp_path):
    """Starts the command on so many GPUs."""
    require(request.param)
    where = ("--workers", request.param) if REHEARSAL else ("--cluster", "cuda", "--workers", request.param)

    def start(comm):
        pair, recipe = (images / "fixed.zarr", images / "moving.zarr"), ("--config", images / f"{comm}.yaml")
        return Command(*pair, tmp_path / "run.zarr", *recipe, *where, "--comm", comm, "--checkpoint-every", OFTEN)

    return start


def said_by_dask(text):
    return [line for line in text.splitlines() if " - INFO - " in line or "distributed." in line or "dask_cuda" in line]


@pytest.mark.parametrize("comm", COMMS)
def test_the_command_goes_on_after_kill_9(command, alone, comm):
    with command(comm) as run:
        run.wait_until(lambda: run.checkpoint >= 1)
        before = run.checkpoint
        os.kill(run.workers()[-1], signal.SIGKILL)
        again = run.wait_until(lambda: run.checkpoint > before + 1, RECOVERY)
        code, said, seconds = run.ended(120)
    print(f"{comm}: checkpoints again {again:.1f} s after the kill, the end {seconds:.1f} s later\n{said}")  # noqa: T201
    assert code == 0, said
    assert "Starting again from the last checkpoint" in said
    assert not said_by_dask(said)
    np.testing.assert_array_equal(bits(Result(RunStore.open(run.path))), alone(iterations(MORE, comm)))


@pytest.mark.parametrize("comm", COMMS)
def test_the_command_writes_a_checkpoint_at_sigterm(command, alone, comm):
    with command(comm) as run:
        run.wait_until(lambda: run.checkpoint >= 1)
        before = run.checkpoint
        os.kill(run.process.pid, signal.SIGTERM)
        code, said, seconds = run.ended(4 * STOP)
    print(f"{comm}: ended {seconds:.1f} s after SIGTERM\n{said}")  # noqa: T201
    assert code == 143, said
    assert seconds < STOP
    assert run.checkpoint > before
    assert f"--resume -o {run.path}" in said
    found = daskreg.register(output=run.path, resume=True, device=DEVICE)
    np.testing.assert_array_equal(bits(found), alone(iterations(MORE, comm)))

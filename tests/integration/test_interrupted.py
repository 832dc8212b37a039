"""Ctrl-C while a transform is applied, inverted, looked at, refined or found: nothing half-written is taken for a result."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, open_volume, write_image
from daskreg.workflows.demo import demo_pair
from tests.phantoms import smooth_field
from tests.unit.workflows.runs import make_run

FIXED, MOVING = demo_pair(3)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A run on the bundled pair, and a grid that is so fine that a command on it takes its time."""
    folder = tmp_path_factory.mktemp("inputs")
    grid = open_volume(FIXED).grid
    field = smooth_field(grid.shape, 2.0, seed=3).field(grid.shape)
    world = np.einsum("rc,czyx->rzyx", grid.index_to_world[:3, :3], field).astype(np.float32)
    make_run(folder / "run.zarr", np.eye(4), world, fixed=grid, moving=open_volume(MOVING).grid)
    fine = Grid(
        (512, 512, 512), tuple(s * n / 512 for s, n in zip(grid.spacing, grid.shape)), grid.origin, grid.direction, "mm", True
    )
    write_image(folder / "fine.ome.zarr", np.zeros((512, 512, 512), np.uint8), fine)
    return folder


COMMANDS = {
    "apply": ["apply", "run.zarr", MOVING, "-o", "out.ome.zarr", "--like", "fine.ome.zarr", "--interpolation", "cubic"],
    "apply to one file": ["apply", "run.zarr", MOVING, "-o", "out.nii.gz", "--like", "fine.ome.zarr"],
    "invert": ["invert", "run.zarr", "-o", "out.zarr", "--finer", "6"],
    "jacobian": ["jacobian", "run.zarr", "-o", "out.ome.zarr", "--like", "fine.ome.zarr"],
    "refine": ["refine", "run.zarr", FIXED, MOVING, "-o", "out.zarr", "--region", "5:55,5:65,5:55"],
}


def begun(child, folder, before):
    """Whether something is being written, or registered."""
    deadline = time.monotonic() + 240
    os.set_blocking(child.stderr.fileno(), False)
    while time.monotonic() < deadline and child.poll() is None:
        if set(os.listdir(folder)) - before or b"dashboard" in (child.stderr.read() or b""):
            return True
        time.sleep(0.01)
    return False


def ended(child):
    """What it said on standard error; where its threads are, if it does not end."""
    try:
        return child.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)
        return child.communicate()[1]


# one that writes chunks, one that writes a file and one that registers in the default suite, with an older output or without
USUAL = {"apply": True, "apply to one file": False, "refine": True}
CASES = [
    pytest.param(name, older, marks=[] if USUAL.get(name) is older else [pytest.mark.slow])
    for name in COMMANDS
    for older in (False, True)
]


@pytest.mark.parametrize(("name", "older"), CASES)
def test_an_interrupted_command_leaves_no_output_and_keeps_what_it_was_to_replace(inputs, tmp_path, name, older):
    words = [str(inputs / w) if w in ("run.zarr", "fine.ome.zarr") else w for w in COMMANDS[name]]
    output = tmp_path / words[words.index("-o") + 1]
    if older:
        place = output if output.suffix == ".gz" else tmp_path / "older.ome.zarr"
        write_image(place, np.ones((4, 4, 4), np.uint8), Grid((4, 4, 4), unit="mm"))
        place.rename(output)
        words.append("--overwrite")
    before = set(os.listdir(tmp_path))
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child ignores what was ignored where it came from
    try:
        command = [sys.executable, "-X", "faulthandler", "-m", "daskreg.cli", *words]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert begun(child, tmp_path, before)
    child.send_signal(signal.SIGINT)
    os.set_blocking(child.stderr.fileno(), True)
    said = ended(child)
    assert child.returncode == 130, said.decode()
    lines = [line for line in said.decode().splitlines() if line and not re.match(r"\d{4}-\d\d-\d\d ", line)]  # no messages
    assert lines == ["daskreg: stopped; nothing was written."]
    assert set(os.listdir(tmp_path)) == before
    if older:
        assert open_volume(output).read().min() == 1


SWALLOWS = """
import gc, sys, time
from daskreg import cli

def _gc_callback(phase, info):
    print("now", flush=True)
    time.sleep(1)

def app():
    try:
        gc.callbacks.append(_gc_callback)
        gc.collect()
        gc.callbacks.clear()
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_garbage_is_collected_is_not_lost(number, code):
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        child = subprocess.Popen([sys.executable, "-c", SWALLOWS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert child.stdout.readline() == b"now\n"
    time.sleep(0.2)
    child.send_signal(number)
    assert ended(child) == b"daskreg: stopped; nothing was written.\n"
    assert child.returncode == code


SCRIPT = """
import os, signal, sys
import numpy as np
import daskreg

told = []

def interrupt(progress):  # as a terminal does: all processes of its foreground group
    if progress.iteration >= 3 and not told:
        told.append(progress)
        os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    output, *workers = sys.argv[1:]
    rng = np.random.default_rng(0)
    images = dict(fixed=rng.random((24, 12, 12), np.float32), moving=rng.random((24, 12, 12), np.float32))
    client = None
    if workers:
        from dask.distributed import Client, LocalCluster
        client = Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0"))
    images = {name: daskreg.open_volume(a, spacing=1, unit="mm") for name, a in images.items()}
    daskreg.register(
        **images, config=[daskreg.Deformable(similarity="mse", scales=1, iterations=100000, tolerance=0)],
        output=output, client=client, checkpoint=1e6, progress=interrupt,
    )
"""


def interrupted_script(folder, *arguments):
    """What a script says that registers and is interrupted, and its exit code."""
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(
            [sys.executable, folder / "script.py", *map(str, arguments)], cwd=folder, env=environment, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, previous)
    return ended(child).decode(), child.returncode


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["2"]], ids=["own worker", "workers of a client"])
def test_a_script_that_is_interrupted_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path, workers):
    run = tmp_path / "run.zarr"
    said, code = interrupted_script(tmp_path, run, *workers)
    assert code == -signal.SIGINT, said  # as Python ends at a KeyboardInterrupt
    assert said.rstrip().endswith(f"in Python with daskreg.register(fixed=fixed, moving=moving, output='{run}', resume=True).")
    assert "\nKeyboardInterrupt\nThe last checkpoint is kept: " in said
    assert len(CheckpointStore(str(run)).latest()[1]["losses"]) >= 3

"""The command line as a user meets it: one sentence and an exit code for what cannot be done, nothing half-written."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest
import zarr
from rich.console import Console

import daskreg
from daskreg import cli
from daskreg.cluster import device_of
from daskreg.engine.report import Progress
from daskreg.lazy.load import load_transform
from daskreg.machine import Limit
from daskreg.reporting.bars import bars
from daskreg.storage import CheckpointStore
from daskreg.workflows import resources
from daskreg.workflows.demo import demo_pair
from tests.phantoms import blobs
from tests.unit.workflows.runs import FIXED as FIXED_GRID
from tests.unit.workflows.runs import affine, displacement, make_run

FIXED, MOVING = demo_pair(3)
QUICK = "stages:\n- moments\n- {stage: affine, scales: 4}\n- {stage: deformable, similarity: mse, scales: 4, iterations: 20}\n"


def run(capsys, *arguments):
    """Exit code and standard error of one command line."""
    old, sys.argv = sys.argv, ["daskreg", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = old
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def head():
    image = nib.load(MOVING)
    return np.asarray(image.dataobj).astype(np.float32), image.affine


def saved(path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def spoilt(kind, head, folder):
    """An image with one thing wrong, and the words the message must hold."""
    voxels, affine = head[0].copy(), head[1].copy()
    path = folder / f"{kind}.nii.gz"
    if kind == "nan":
        voxels[3, 4, 5] = np.nan
        return saved(path, voxels, affine), "is NaN or infinite at 1 voxel;"
    if kind == "constant":
        return saved(path, np.ones_like(voxels), affine), "is constant"
    if kind == "two":
        return saved(path, voxels[:, :, 20], affine), "3D image"
    if kind == "four":
        return saved(path, np.stack([voxels, voxels], -1), affine), "::time=0"
    if kind == "far":
        affine[:3, 3] += 5000
        return saved(path, voxels, affine), "do not overlap"
    if kind == "singular":
        image = nib.Nifti1Image(voxels, None)
        affine[:, 1] = affine[:, 0]
        image.header.set_sform(affine, 1)
        nib.save(image, path)
        return path, "singular"
    if kind == "junk":
        path.write_bytes(b"hello")
        return path, "not compressed"
    if kind == "unitless":
        path = folder / "bare.zarr"
        zarr.save_array(path, voxels)
        return f"{path}::spacing=3", "no unit of length"
    if kind == "spacing":
        path = folder / "bare.zarr"
        zarr.save_array(path, voxels)
        return path, "--spacing"
    return folder / "absent.nii.gz", "does not exist"


KINDS = ["nan", "constant", "two", "four", "far", "singular", "junk", "unitless", "spacing", "absent"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_sentence_and_code_2(kind, head, tmp_path, capsys):
    image, words = spoilt(kind, head, tmp_path)
    code, _, err = run(capsys, "register", FIXED, image, "-o", tmp_path / "run.zarr")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "run.zarr").exists()


def test_an_empty_mask_is_refused(head, tmp_path, capsys):
    mask = saved(tmp_path / "mask.nii.gz", np.zeros_like(head[0]), head[1])
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--moving-mask", mask)
    assert code == 2
    assert "zero everywhere" in err


def test_an_output_without_its_option_is_answered_with_it(capsys):
    code, _, err = run(capsys, "register", FIXED, MOVING, "run.zarr")
    assert code == 2
    assert "The output is named by -o" in " ".join(err.split())
    assert "named by" not in run(capsys, "info", "a.nii", "b.nii")[2]


def test_a_misspelt_key_names_its_neighbour(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("stages: [{stage: affine, iteratons: 3}]")
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--config", tmp_path / "recipe.yaml")
    assert code == 2
    assert "'iterations'" in err


def test_what_print_config_shows_is_a_recipe(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(run(capsys, "register", "--preset", "lightsheet", "--print-config")[1])
    again = run(capsys, "register", "--config", tmp_path / "recipe.yaml", "--print-config")[1]
    assert again == (tmp_path / "recipe.yaml").read_text()


def test_a_dry_run_shows_the_levels_and_writes_nothing(tmp_path, capsys):
    code, out, _ = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--dry-run")
    assert code == 0
    assert "64x76x64" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-o", "no/run.zarr"), "the folder {folder}/no does not exist; create it first"),
        (("-o", "there.zarr"), "exists already: something that is not a daskreg run"),
        (("-o", "run.nii.gz"), "a run is a Zarr store"),
        (("-o", "run.zarr", "--scratch", "no"), "the scratch folder no does not exist"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_not_write_to(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zarr").mkdir()
    code, out, err = run(capsys, "register", FIXED, MOVING, *options, "--dry-run")
    assert (code, "deformable" in out) == (2, True)
    assert words.format(folder=tmp_path) in err
    assert [p.name for p in tmp_path.iterdir()] == ["there.zarr"]


def test_a_dry_run_refuses_what_this_machine_has_no_memory_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("daskreg.machine.memory", lambda: Limit(100 << 20, "the memory limit of the job"))
    images = FIXED, MOVING, "--device", "cpu"
    code, out, err = run(capsys, "register", *images, "-o", tmp_path / "run.zarr", "--dry-run")
    assert code == 2
    assert "deformable" in out
    assert "a worker has 100 MiB (the memory limit of the job)" in err
    assert run(capsys, "plan", *images)[0] == 0  # may be meant for another machine


def test_from_register_to_report(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(QUICK)
    store = tmp_path / "run.zarr"
    assert run(capsys, "register", FIXED, MOVING, "-o", store, "--config", tmp_path / "recipe.yaml")[0] == 0
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", store, "--config", tmp_path / "recipe.yaml")
    assert (code, "--overwrite" in err) == (2, True)
    assert run(capsys, "apply", store, MOVING, "-o", tmp_path / "moved.nii.gz")[0] == 0
    moved = np.asarray(nib.load(tmp_path / "moved.nii.gz").dataobj)
    np.testing.assert_array_equal(moved.transpose(2, 1, 0), np.asarray(zarr.open_array(store / "moved" / "0")[:]))
    assert run(capsys, "export", store, "-o", tmp_path / "warp.nii.gz")[0] == 0
    assert run(capsys, "export", store, "-o", tmp_path / "affine.mat", "--part", "affine")[0] == 0
    found = json.loads(run(capsys, "evaluate", store, "--json")[1])
    status = daskreg.RunStore.open(store).provenance["verdict"]["status"]
    assert (found["jacobian"]["folded_percent"], found["verdict"]["status"]) == (0, status)
    assert run(capsys, "evaluate", store)[1].startswith(f"verdict: {status}: ")
    told = run(capsys, "info", store)[1]
    assert ("complete" in told, f"\nverdict    {status}: " in told) == (True, True)
    assert run(capsys, "report", store, "-o", tmp_path / "report.html")[0] == 0
    assert f"Verdict: {status}" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("other", "expected"), [(3, 0), (8, 3)], ids=["right", "wrong"])
def test_strict_ends_with_3_where_the_result_failed(other, expected, tmp_path, capsys, caplog):
    shape, store = (28, 32, 30), tmp_path / "run.zarr"
    images = [saved(tmp_path / f"{k}.nii", blobs(shape, seed), np.eye(4)) for k, seed in enumerate((3, other))]
    (tmp_path / "recipe.yaml").write_text("stages:\n- {stage: rigid, scales: 4, iterations: 3}\n")
    code, out, _ = run(capsys, "register", *images, "-o", store, "--config", tmp_path / "recipe.yaml", "--strict")
    assert code == expected
    assert out.splitlines()[-1] == f"result: {store}"
    assert out.splitlines()[-2].startswith(f"verdict: {'ok' if expected == 0 else 'failed'}: ")
    assert f"verdict: {'ok' if expected == 0 else 'failed'}: " in caplog.text
    assert daskreg.RunStore.open(store).provenance["verdict"]["status"] == ("ok" if expected == 0 else "failed")


def test_what_can_be_done_with_a_transform(tmp_path, capsys):
    transform = make_run(tmp_path / "run.zarr", affine(), displacement())
    np.save(tmp_path / "in.npy", FIXED_GRID.center[None])
    for command in (
        ["points", "run.zarr", "in.npy", "-o", "out.npy"],
        ["invert", "run.zarr", "-o", "inverse.zarr"],
        ["points", "inverse.zarr", "out.npy", "-o", "back.npy"],
        ["jacobian", "run.zarr", "-o", "j.nii.gz", "--part", "warp"],
        ["export", "run.zarr", "-o", "all.h5"],
        ["export", "all.h5", "-o", "scene.zarr"],
        ["points", "scene.zarr", "out.npy", "-o", "again.csv", "--to", "fixed"],
    ):
        code, out, err = run(capsys, *(str(tmp_path / a) if "." in a else a for a in command))
        assert code == 0, err
        assert out
        assert command[0] != "points" or "lps, millimeter" in out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), load_transform(transform).points(FIXED_GRID.center)[None])
    np.testing.assert_allclose(np.load(tmp_path / "back.npy")[0], FIXED_GRID.center, atol=0.02)
    head, again = (tmp_path / "again.csv").read_text().splitlines()
    assert head == "z,y,x"  # as the array's columns were
    np.testing.assert_allclose([float(v) for v in again.split(",")], FIXED_GRID.center, atol=0.02)
    code, _, err = run(capsys, "invert", tmp_path / "j.nii.gz", "-o", tmp_path / "x.zarr")
    assert (code, "not an image" in err) == (2, True)
    assert not (tmp_path / "x.zarr").exists()


def stopped(sign, folder, *options):
    """What a run says that gets a signal while it iterates; it draws its line on a terminal of its own."""
    (folder / "recipe.yaml").write_text(
        "stages: [{stage: deformable, similarity: mse, scales: 1, iterations: 5000, tolerance: 0}]"
    )
    arguments = ["register", FIXED, MOVING, "-o", folder / "run.zarr", "--config", folder / "recipe.yaml", *options]
    command = [sys.executable, "-m", "daskreg.cli", *map(str, arguments)]
    ours, its = os.openpty()
    previous = signal.signal(
        sign, signal.SIG_DFL
    )  # a child ignores what was ignored where it came from: SIGINT in the background
    try:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, start_new_session=True)
    finally:
        signal.signal(sign, previous)
    os.close(its)
    said = bytearray()
    while b"scale 1" not in said:
        said += os.read(ours, 65536)
    child.send_signal(sign)
    with suppress(OSError):  # how a terminal ends whose other side is gone
        while True:
            said += os.read(ours, 65536)
    os.close(ours)
    assert child.wait(timeout=240) == 128 + sign
    return said.decode()


@pytest.mark.parametrize(
    "sign",
    [signal.SIGTERM, *(pytest.param(sign, marks=pytest.mark.slow) for sign in (signal.SIGINT, signal.SIGHUP))],
    ids=lambda sign: sign.name,
)
def test_a_terminated_run_keeps_what_it_has_reached(tmp_path, sign):
    """Ctrl-C, SIGTERM, which batch systems send before they kill, and SIGHUP of a terminal that is closed."""
    said = stopped(sign, tmp_path)
    assert "nothing was written" not in said
    assert f"daskreg register --resume -o {tmp_path / 'run.zarr'}" in said
    _, state = CheckpointStore(str(tmp_path / "run.zarr")).latest()
    assert 0 < len(state["losses"]) < 5000


def test_a_level_has_a_line_on_a_terminal():
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bars(terminal) as watch:
        for k in range(3):
            watch(Progress("affine", 2, k + 1, 3, -0.5))
    assert "affine" in terminal.file.getvalue()
    assert "3/3" in terminal.file.getvalue()


def without_gpus(monkeypatch):
    """A machine that has none."""
    monkeypatch.setattr("daskreg.cluster.workers.gpus", lambda: 0)


def test_a_gpu_that_is_not_there_is_named_before_anything_is_computed(capsys, tmp_path, monkeypatch):
    without_gpus(monkeypatch)
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--device", "cuda")
    assert code == 2
    assert "this machine has none that CuPy can use" in err
    assert "--device cpu" in err
    assert not (tmp_path / "run.zarr").exists()


def test_a_cluster_of_gpus_needs_gpus(capsys, tmp_path, monkeypatch):
    without_gpus(monkeypatch)
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--cluster", "cuda", "--workers", 2)
    assert code == 2
    assert "this machine has none that CuPy can use" in err
    assert not (tmp_path / "run.zarr").exists()


def test_apply_settles_its_device_as_register_does(capsys, tmp_path, monkeypatch):
    without_gpus(monkeypatch)
    make_run(tmp_path / "run.zarr", affine(), displacement())
    code, _, err = run(capsys, "apply", tmp_path / "run.zarr", MOVING, "-o", tmp_path / "m.nii", "--device", "cuda")
    assert (code, "this machine has none" in err) == (2, True)
    assert not (tmp_path / "m.nii").exists()
    assert run(capsys, "apply", tmp_path / "run.zarr", MOVING, "-o", tmp_path / "m.nii", "--device", "auto")[0] == 0
    asked = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("daskreg.cluster.workers.gpus", lambda: 1)
    monkeypatch.setattr("daskreg.workflows.apply.resampled", lambda *_, device, **__: asked.append(device) or 1 / 0)
    for device in ("auto", "cuda", "cpu"):
        code, _, err = run(capsys, "apply", tmp_path / "run.zarr", MOVING, "-o", tmp_path / "n.nii", "--device", device)
        assert (code, "unexpected ZeroDivisionError" in err) == (1, True)
    assert asked == ["cuda", "cuda", "cpu"]


def test_where_no_gpu_is_the_device_is_the_processor(monkeypatch):
    without_gpus(monkeypatch)
    assert device_of(None, "auto") == "cpu"
    monkeypatch.setattr("daskreg.cluster.workers.gpus", lambda: 1)
    assert device_of(None, "auto") == "cuda"
    assert device_of(None, "cpu") == "cpu"
    assert device_of(None, "auto", 2) == "cpu"


@pytest.mark.parametrize(
    ("options", "speed"), [((), "GPU"), (("--workers", 2), "core"), (("--workers", 2, "--device", "cuda"), "GPU")]
)
def test_a_plan_assumes_the_speed_of_what_the_run_would_take(capsys, monkeypatch, options, speed):
    """With two workers and one GPU that is the processor."""
    monkeypatch.setattr("daskreg.cluster.workers.gpus", lambda: 1)
    for command in (("plan",), ("register", "--dry-run")):
        code, out, _ = run(capsys, *command, FIXED, MOVING, *options)
        assert code == 0
        assert speed in next(line for line in out.splitlines() if line.startswith("time: "))
    assert "GPU" in run(capsys, "register", "--dry-run", FIXED, MOVING, "--workers", 2, "--cluster", "cuda")[1]


def test_without_a_worker_yet_nothing_is_said_of_its_gpu(monkeypatch):
    monkeypatch.setattr("daskreg.cluster.workers.ask_workers", lambda *_: {})
    assert device_of(object(), "auto") == "cpu"


def test_the_workers_of_a_cluster_are_waited_for_before_they_are_asked_for_gpus(monkeypatch):
    asked = []

    def noted(name, answer):
        return lambda *_: asked.append(name) or answer

    answers = {"worker_count": 3, "device_of": "cpu", "memory_limit": Limit(1 << 30, "here"), "estimated_bytes": 7}
    for name, answer in answers.items():
        monkeypatch.setattr(f"daskreg.cluster.{name}", noted(name, answer))
    use = resources.allocate(resources.Resources(), object(), "tcp://here:1")
    assert asked == list(answers)
    assert (use.workers, use.device, use.memory) == (3, "cpu", Limit(1 << 30, "here"))


def test_a_cluster_of_gpus_is_not_for_the_processor(capsys, tmp_path):
    code, _, err = run(capsys, "register", FIXED, MOVING, "-o", tmp_path / "run.zarr", "--cluster", "cuda", "--device", "cpu")
    assert code == 2
    assert "leave one of them out" in err


def test_every_command_has_its_function():
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert len(commands) == 19
    for name in commands:
        where = "cli.submission" if name == "submit" else f"workflows.{name}"  # it parses what register parses
        assert getattr(daskreg, name).__module__ == f"daskreg.{where}"


def test_the_version_is_printed_without_a_command(capsys):
    status, out, _ = run(capsys, "--version")
    assert (status, out.strip()) == (0, daskreg.__version__)

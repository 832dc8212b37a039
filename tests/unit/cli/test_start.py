"""What a command imports before it answers: a description and an error do not wait for what computes."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

SLOW = ("numba", "distributed", "dask.array", "zarr", "matplotlib", "bokeh", "scipy.ndimage", "scipy.spatial", "scipy.sparse")
# one process for all commands: what none of them may import, none has
PROBE = """
import contextlib, io, json, sys
from daskreg.cli import main
slow, commands = json.loads(sys.argv[1])
for command in commands:
    sys.argv, said = ["daskreg", *command], io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main()
    except SystemExit as end:
        print(json.dumps([end.code, sorted({*slow} & {*sys.modules}), said.getvalue()]))
"""
ERRORS = [
    ("info", "nosuch.nii.gz"),
    ("register", "nosuch.nii.gz", "b.nii.gz", "-o", "r.zarr"),
    ("register", "a.nii.gz", "b.nii.gz", "-o", "r.zarr", "--preset", "nosuch"),
    ("plan", "nosuch.nii.gz", "b.nii.gz"),
    ("verify", "nosuch.nii.gz", "b.nii.gz"),
    ("refine", "nosuch.zarr", "a.nii.gz", "b.nii.gz", "-o", "r.zarr", "--region", "0:1,0:1,0:1"),
    ("apply", "nosuch.zarr", "b.nii.gz", "-o", "r.nii.gz"),
    ("points", "nosuch.zarr", "p.csv", "-o", "r.csv"),
    ("invert", "nosuch.zarr", "-o", "r.zarr"),
    ("jacobian", "nosuch.zarr", "-o", "r.nii.gz"),
    ("export", "nosuch.zarr", "-o", "r.nii.gz"),
    ("evaluate", "nosuch.zarr"),
    ("report", "nosuch.zarr", "-o", "r.html"),
]


def answers(folder, slow, *commands):
    """Exit code, slow modules imported so far, and what is said, of commands that run one after another in a new process."""
    call = [sys.executable, "-c", PROBE, json.dumps([slow, commands])]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True, cwd=folder)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty one but for an image."""
    made = tmp_path_factory.mktemp("start")
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), made / "image.nii.gz")
    return made


def test_descriptions_and_errors_are_said_without_what_computes(folder):
    described, *refused = answers(folder, SLOW, ("info", "image.nii.gz"), *ERRORS)
    assert described[:2] == [0, []]
    assert "6 x 5 x 4  (z, y, x)" in described[2]
    for command, (code, slow, said) in zip(ERRORS, refused, strict=True):
        assert (command, code, slow) == (command, 2, [])
        assert said.startswith("daskreg: ")
        assert "nosuch" in said
    assert [entry.name for entry in folder.iterdir()] == ["image.nii.gz"]


def test_a_version_needs_no_numpy(folder):
    ((code, slow, _),) = answers(folder, ("numpy", "pydantic", *SLOW), ("--version",))
    assert (code, slow) == (0, [])

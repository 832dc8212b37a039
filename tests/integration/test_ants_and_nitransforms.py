"""ANTs and nitransforms apply what daskreg exports as daskreg does: the bundled head, an oblique and mirrored grid, a bump.

They hold NumPy and SciPy back, and so live in an environment of their own (``pip install antspyx nitransforms``), whose Python
the variable DASKREG_OUTSIDE names.
"""

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from daskreg.lazy.load import load_transform
from daskreg.storage import open_volume, write_image
from daskreg.workflows.apply import apply
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.export import export
from daskreg.workflows.invert import invert
from tests.integration.test_transforms_outside import TURNED, affine_about, warp_on
from tests.unit.workflows.runs import make_run

pytestmark = pytest.mark.outside
JUDGE = Path(__file__).parents[1] / "outside" / "judge.py"
SETS = {"one field": ["total.nii.gz"], "field and affine": ["warp.nii.gz", "affine.mat"], "composite": ["all.h5"]}


@pytest.fixture(scope="module")
def python():
    assert "DASKREG_OUTSIDE" in os.environ, "name the Python that has antspyx and nitransforms in DASKREG_OUTSIDE"
    return os.environ["DASKREG_OUTSIDE"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The head in float, a run with its exports, what daskreg makes of them, and points."""
    folder = tmp_path_factory.mktemp("outside")
    head = open_volume(demo_pair(3)[1])
    write_image(folder / "moving.nii.gz", head.data.astype(np.float32), head.grid)
    make_run(folder / "run.zarr", affine_about(TURNED), warp_on(TURNED, bump=2.0), fixed=TURNED, moving=head.grid)
    apply(folder / "run.zarr", folder / "moving.nii.gz", folder / "ours.nii.gz")
    for name, part in (("total.nii.gz", "total"), ("warp.nii.gz", "warp"), ("affine.mat", "affine"), ("all.h5", "total")):
        export(folder / "run.zarr", folder / name, part=part)
    points = TURNED.to_world(np.random.default_rng(0).uniform(3, np.array(TURNED.shape) - 4, (300, 3)))
    np.save(folder / "points.npy", points[:, ::-1])
    return folder, head.grid, points


def judged(python, program, folder, names):
    arguments = [folder / "moving.nii.gz", folder / "ours.nii.gz", folder / "points.npy", folder / "theirs.npz"]
    command = [python, JUDGE, program, *arguments, *(folder / n for n in names)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "theirs.npz")


@pytest.mark.parametrize("program", ["ants", "nitransforms"])
@pytest.mark.parametrize("which", SETS)
def test_images_and_points_agree(python, files, program, which):
    folder, moving, points = files
    theirs, transform = judged(python, program, folder, SETS[which]), load_transform(folder / "run.zarr")
    ours = np.asarray(nib.load(folder / "ours.nii.gz").dataobj)
    at = moving.to_index(transform.points(TURNED.to_world(np.moveaxis(np.indices(TURNED.shape), 0, -1))))
    inside = ((at > 1) & (at < np.array(moving.shape) - 2)).all(axis=-1).transpose(2, 1, 0)
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.2
    assert np.abs(theirs["moved"] - ours)[inside].mean() / np.abs(ours[inside]).mean() < 0.005
    off = (theirs["points"][:, ::-1] - transform.points(points)) @ moving.world_to_index[:3, :3].T
    assert np.linalg.norm(off, axis=1).max() < 0.01


def test_the_inverse_undoes_it_in_ants(python, files):
    """ANTs takes points through our field, and brings them back through our inverse."""
    folder, moving, points = files
    make_run(folder / "smooth.zarr", affine_about(TURNED), warp_on(TURNED, 2.0, 0.5), fixed=TURNED, moving=moving)
    found = invert(folder / "smooth.zarr", folder / "inverse.zarr").fixed_round_trip
    assert found.mean < 0.01
    assert found.largest < 0.1
    export(folder / "smooth.zarr", folder / "smooth.h5")
    export(load_transform(folder / "inverse.zarr"), folder / "inverse.h5")
    there = judged(python, "ants", folder, ["smooth.h5"])["points"]
    np.testing.assert_allclose(there[:, ::-1], load_transform(folder / "smooth.zarr").points(points), atol=0.03)
    back = judged(python, "ants", folder, ["smooth.h5", "inverse.h5"])["points"][:, ::-1]
    off = (back - points) @ TURNED.world_to_index[:3, :3].T
    assert np.linalg.norm(off, axis=1).max() < 0.1

"""A registration may start from a displacement in memory, such as a network's."""

import numpy as np
import pytest

import daskreg
from daskreg.errors import ArrayError, ConfigError
from daskreg.workflows.progress import lines_of
from daskreg.workflows.start import stored_start

SHAPE = 8, 9, 10
GRID = daskreg.Grid(SHAPE, (2.0, 1.0, 1.5), (5.0, -3.0, 0.0), unit="millimeter")


class Tensor:
    """What a network returns, as daskreg sees it."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    def cpu(self):
        return self.values


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    other = daskreg.Grid(SHAPE, (1.0, 1.0, 3.0), (0.0, 7.0, 1.0), unit="millimeter")
    return [daskreg.open_volume(rng.random(SHAPE, np.float32), grid=grid) for grid in (GRID, other)]


@pytest.mark.parametrize("wrap", [np.asarray, Tensor, lambda u: Tensor(u[None])])
def test_a_displacement_in_voxels_leads_to_voxels_of_the_moving_image(images, tmp_path, wrap):
    u = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    path = stored_start(wrap(u), *images, None, tmp_path / "run.zarr", resume=False)
    assert path == tmp_path / "run.start.zarr"
    at = np.array([[2, 3, 4], [7, 0, 9], [0, 8, 1]])
    found = daskreg.load_transform(path).fixed_to_moving_points(images[0].grid.to_world(at))
    expected = images[1].grid.to_world(at + u[:, *at.T].T)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_addresses_stay_as_they_are(images, tmp_path):
    assert stored_start("start.nii.gz", *images, None, tmp_path / "run.zarr", resume=False) == "start.nii.gz"
    assert stored_start(None, *images, None, tmp_path / "run.zarr", resume=False) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_with_this_process_is_kept_beside_the_one_that_starts_from_it(images, tmp_path):
    images = [daskreg.open_volume(image, grid=GRID) for image in images]
    first = daskreg.register(*images, [daskreg.Moments()], progress=False)
    kept = stored_start(first, *images, None, tmp_path / "run.zarr", resume=False)
    assert kept == tmp_path / "run.start.zarr"
    np.testing.assert_array_equal(daskreg.load_transform(kept).affine, first.affine)
    named = daskreg.register(*images, [daskreg.Moments()], output=tmp_path / "named.zarr", progress=False)
    assert stored_start(named, *images, None, tmp_path / "other.zarr", resume=False) == str(tmp_path / "named.zarr")


def test_a_run_that_is_resumed_starts_from_what_is_there(images, tmp_path):
    path = stored_start(np.zeros((3, *SHAPE)), *images, None, tmp_path / "run.zarr", resume=False)
    assert stored_start(np.ones((3, *SHAPE)), *images, None, tmp_path / "run.zarr", resume=True) == path
    assert np.count_nonzero(daskreg.load_transform(path).links[0].displacement[:]) == 0


@pytest.mark.parametrize(
    ("start", "error", "sentence"),
    [
        (np.zeros((3, 8, 9, 9)), ArrayError, "needs two images of its shape: bring moving onto the grid of fixed first"),
        (np.zeros((2, *SHAPE)), ArrayError, "finite numbers were expected"),
        (np.full((3, *SHAPE), np.nan), ArrayError, "finite numbers were expected"),
        (object(), ArrayError, "an address, a Result, a Transform or an array was expected"),
    ],
)
def test_anything_else_gets_one_sentence(images, tmp_path, start, error, sentence):
    with pytest.raises(error, match=sentence):
        stored_start(start, *images, None, tmp_path / "run.zarr", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_voxels_of_no_images_cannot_be_counted(tmp_path):
    with pytest.raises(ConfigError, match="needs both images"):
        stored_start(np.zeros((3, *SHAPE)), None, None, None, tmp_path / "run.zarr", resume=False)


def test_a_registration_starts_from_an_array(tmp_path):
    """A blob that was moved by two voxels is where it belongs before the first iteration."""
    z, y, x = np.indices((16, 16, 16), np.float32)
    fixed, moving = (np.exp(-((z - c) ** 2 + (y - 8) ** 2 + (x - 8) ** 2) / 12) for c in (7, 9))
    u = np.zeros((3, 16, 16, 16), np.float32)
    u[0] = 2
    stage = daskreg.Deformable(scales=(1,), iterations=(1,), similarity=daskreg.MSE())
    run = daskreg.register(fixed, moving, [stage], initial_transform=u, output=tmp_path / "run.zarr", progress=False)
    metrics = run.report["metrics"]
    assert metrics["before"]["ncc"] > 0.999
    assert "affine part" not in str(lines_of(run.report)) + repr(run)
    left_out = {**run.report, "metrics": {**metrics, "before_by": "affine"}}  # as of images that stay in their files
    assert "before by the affine part of the initial transform alone" in str(lines_of(left_out))
    assert np.abs(np.asarray(run.moved.data) - fixed)[4:12].max() < 0.05
    assert (tmp_path / "run.start.zarr").exists()

"""A part registered again fits better, and nothing shows where it ends."""

from dataclasses import replace

import numpy as np
import pytest

import daskreg
from daskreg import MSE, Affine, Deformable
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.grid import Grid, Region
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import open_volume, write_image
from daskreg.workflows.refine import parse_region, refine
from tests.phantoms import known_warp_pair, rotation, target_registration_error

SHAPE = (48, 44, 52)
GRID = Grid(SHAPE, (1.5, 1.2, 1.0), (4.0, -9.0, 7.0), tuple(map(tuple, rotation((6, -11, 17)))), "mm", True)
PART = Region((12, 10, 14), (40, 38, 42))
STAGE = Deformable(similarity=MSE(), scales=(2, 1), iterations=(40, 30))


@pytest.fixture(scope="module")
def pair():
    fixed, moving, warp = known_warp_pair(SHAPE, 2.0, 3)
    return open_volume(fixed, grid=GRID), open_volume(moving, grid=GRID), warp


@pytest.fixture(scope="module")
def refined(pair, tmp_path_factory):
    start = Transform.of(None, GRID, np.zeros((3, *SHAPE), np.float32), GRID)
    return refine(start, pair[0], pair[1], tmp_path_factory.mktemp("r") / "refined.zarr", PART, stages=[STAGE], blend=6)


def voxels(transform):
    return np.einsum("rc,czyx->rzyx", GRID.world_to_index[:3, :3], transform.field(GRID.region))


def test_inside_it_fits_and_outside_nothing_changes(pair, refined):
    u, middle = voxels(refined.transform), np.zeros(SHAPE, bool)
    middle[PART.grow(-7).slices] = True
    before = target_registration_error(np.zeros_like(u), pair[2], middle)
    assert target_registration_error(u, pair[2], middle).mean() < 0.35 * before.mean()
    assert refined.after["ncc"] > refined.before["ncc"]
    outside = np.ones(SHAPE, bool)
    outside[PART.grow(-1).slices] = False
    assert not u[:, outside].any()


def test_there_is_no_seam(refined):
    """Across the faces of the part the displacement is as smooth as within it, and space does not fold."""
    u = voxels(refined.transform)
    steepest = max(np.abs(np.diff(u, n=2, axis=a)).max() for a in (1, 2, 3))
    for axis in range(3):
        bend = np.abs(np.diff(u, n=2, axis=axis + 1))
        for face in (PART.start[axis], PART.stop[axis] - 1):
            assert np.take(bend, face - 1, axis=axis + 1).max() <= 0.5 * steepest
    assert refined.jacobian_statistics.smallest > 0


def test_it_is_a_chain_that_comes_back_from_disk(pair, refined, tmp_path):
    assert len(refined.transform.links) == 2
    moved = refined.transform.apply(pair[1]).compute()
    assert np.corrcoef(moved[PART.slices].ravel(), pair[0].read(PART).ravel())[0, 1] > refined.before["ncc"]
    coarse = Transform.of(None, GRID.coarsen((2, 2, 2)), np.zeros((3, 24, 22, 26), np.float32), GRID)
    finer = refine(coarse, pair[0], pair[1], tmp_path / "finer.zarr", "12:40,10:38,14:42", stages=[STAGE], blend=6)
    points = GRID.to_world(np.random.default_rng(0).uniform(15, 35, (50, 3)))
    np.testing.assert_allclose(finer.transform.points(points), load_transform(tmp_path / "finer.zarr").points(points))
    np.testing.assert_allclose(finer.transform.points(points), refined.transform.points(points), atol=1e-5)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ("1:2", "three spans"),
        ("0:20,0:20,0:99", "not inside the fixed image"),
        ("0:20,0:12,0:20", "no middle"),
        ("a:b,0:1,0:1", "spans"),
        ("0:20,38:10,0:20", "along y it begins at 38 and ends before 10"),
    ],
)
def test_a_part_that_cannot_be_is_refused(pair, tmp_path, region, words):
    with pytest.raises(ConfigError, match=words):
        refine(Transform.of(None, GRID), pair[0], pair[1], tmp_path / "r.zarr", region)
    assert not list(tmp_path.iterdir())


def test_exchanged_images_are_refused(pair, tmp_path):
    """The result was ok: what is resampled through the wrong way still resembles the other image."""
    fixed, moving, _ = pair
    paths = [tmp_path / f"{name}.ome.zarr" for name in ("fixed", "moving")]
    for path, image in zip(paths, (fixed, moving), strict=True):
        write_image(path, image.data, GRID)
    run = daskreg.register(*paths, [Affine(scales=(4,), iterations=(1,))], output=tmp_path / "run.zarr", progress=False)
    for images in (paths, [str(path) for path in paths]):
        with pytest.raises(ConfigError, match=r"the moving image of .*run\.zarr was given as the fixed one"):
            refine(run, *images[::-1], tmp_path / "r.zarr", PART)
    other = replace(GRID, shape=(40, 44, 52))
    start = Transform.of(None, GRID, None, other)
    with pytest.raises(ConfigError, match="has the grid of its moving image, and array that of its fixed image"):
        refine(start, open_volume(np.zeros(other.shape), grid=other), fixed, tmp_path / "r.zarr", PART)


def test_the_refined_transform_of_a_bare_affine_has_the_grid_of_the_fixed_image(pair, tmp_path):
    stage = Deformable(similarity=MSE(), scales=(2,), iterations=(1,))
    found = refine(Transform.of(np.eye(4), unit="mm"), pair[0], pair[1], tmp_path / "r.zarr", PART, stages=[stage], blend=6)
    assert found.transform.fixed == GRID


def test_only_deformable_stages_fade(pair, tmp_path):
    with pytest.raises(ConfigError, match="deformable stages only"):
        refine(Transform.of(None, GRID), pair[0], pair[1], tmp_path / "r.zarr", PART, stages=[Affine()])
    assert parse_region("1:2, 3:4,5:6") == Region((1, 3, 5), (2, 4, 6))


def test_an_output_that_cannot_be_is_refused_before_the_registration(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("daskreg.workflows.refine.register", None)
    start = Transform.of(None, GRID, np.zeros((3, *SHAPE), np.float32), GRID)
    (tmp_path / "there.zarr").mkdir()
    for name, error in (("there.zarr", OutputExists), ("nowhere/r.zarr", OutputError), ("field.nii.gz", OutputError)):
        with pytest.raises(error):
            refine(start, pair[0], pair[1], tmp_path / name, PART, stages=[STAGE])

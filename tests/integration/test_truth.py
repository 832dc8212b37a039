"""The public ``register`` against warps that are known, and against itself on the same data stored or computed otherwise."""

from dataclasses import replace
from functools import cache
from itertools import count

import dask.array as da
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, map_coordinates

from daskreg import LNCC, MI, MSE, Affine, Config, Deformable, Grid, Rigid, open_volume, register
from daskreg.storage.transforms import write_affine
from tests.integration.workers import unjudged
from tests.phantoms import (
    body_mask,
    known_warp_pair,
    non_monotonic,
    oblique_grid,
    rotation,
    smooth_field,
    target_registration_error,
    texture,
)

SIZE = (64, 64, 64)
SMALL = (40, 36, 44)
FLUID = {"smooth_gradient": 2.0, "smooth_warp": 1.0, "tolerance": 0.0}  # a warp as smooth as the one looked for
QUICK = Deformable(similarity=MSE(), scales=(2, 1), iterations=(30, 10))


@pytest.fixture(autouse=True)
def verdicts(request):
    """Of known warps alone."""
    if request.function is test_a_known_warp_is_found:
        yield
        return
    with unjudged():
        yield


@cache
def pair(shape=SMALL, amplitude=2.0, contrast=None):
    return known_warp_pair(shape, amplitude, contrast=contrast)


@pytest.fixture
def run(tmp_path):
    """``register`` into a folder that goes with the test."""
    number = count()

    def into_a_folder(fixed, moving, config, **options):
        return register(fixed, moving, config, output=tmp_path / f"{next(number)}.zarr", **options)

    return into_a_folder


def field(result):
    return result.displacement.compute(scheduler="synchronous")


def moved(result):
    return result.moved.data.compute(scheduler="synchronous")


def error(result, warp, shape):
    """Mean distance to the truth within the body, voxels (of one world unit)."""
    return target_registration_error(field(result), warp, body_mask(shape, warp)).mean()


def levels(result):
    return result.report["levels"]


# --- analytic truth ---------------------------------------------------------------------------------------------------

STAGES = {
    "mse": [Deformable(similarity=MSE())],
    "lncc": [Deformable(similarity=LNCC(), scales=(2, 1), iterations=(50, 15), **FLUID)],
    "mi": [
        Deformable(similarity=MI(), scales=(2,), iterations=(50,), **FLUID),
        Deformable(similarity=MI(), scales=(1,), iterations=(15,), step=0.1, **FLUID),
    ],
}


@pytest.mark.parametrize(("name", "contrast", "voxels"), [("mse", None, 0.15), ("lncc", None, 0.15), ("mi", non_monotonic, 0.25)])
def test_a_known_warp_is_found(run, name, contrast, voxels):
    fixed, moving, warp = pair(SIZE, 3.0, contrast)
    result = run(fixed, moving, STAGES[name])
    assert error(result, warp, SIZE) < voxels
    assert result.report["metrics"]["jacobian"]["folded_percent"] == 0
    assert result.verdict.status == "ok"


def test_the_same_image_stays_where_it_is(run):
    fixed, _, _ = pair()
    result = run(fixed, fixed, [Rigid(similarity=MSE(), scales=(2,), iterations=(10,)), QUICK])
    np.testing.assert_allclose(result.affine, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(field(result), 0, atol=1e-3)
    np.testing.assert_allclose(moved(result), fixed, atol=1e-3)


def between_grids():
    """Two grids that share neither shape, spacing nor orientation, and a linear map from fixed to moving points."""
    fixed = Grid((40, 48, 56), (2.0, 1.5, 1.0), (-40.0, -30.0, 5.0), tuple(map(tuple, rotation((6, -11, 17)))), "mm", True)
    moving = Grid((60, 45, 48), (1.4, 1.7, 1.3), (-45.0, -34.0, 0.0), tuple(map(tuple, rotation((-17, 6, 11)))), "mm", True)
    middle = fixed.center - moving.center
    moving = replace(moving, origin=tuple(np.asarray(moving.origin) + middle))
    linear = rotation((3, 4, -5)) @ np.diag([1.04, 0.97, 1.0])
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = linear, fixed.center - linear @ fixed.center + [1.5, -2.0, 1.0]
    return fixed, moving, world


def points(grid):
    """World position of every voxel, (3, Z, Y, X)."""
    return np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape).astype(float), 0, -1)), -1, 0)


def mapped(world, at):
    return np.tensordot(world[:3, :3], at, 1) + world[:3, 3].reshape(3, 1, 1, 1)


def test_grids_of_other_shape_spacing_and_orientation(run):
    """A linear map and a warp of the fixed space before it, both known in the world."""
    grid, other, world = between_grids()
    corner = grid.center.reshape(3, 1, 1, 1) - 30  # the formula's origin in the world: a ball of 60 mm about the centre
    formula, warp = texture((60, 60, 60), 4), smooth_field((60, 60, 60), 2.0, seed=5)
    at = points(grid)
    truth = mapped(world, at + warp.displacement(at - corner))
    fixed, moving = formula(truth - corner), formula(points(other) - corner)
    stages = [
        Affine(similarity=MSE(), scales=(4, 2), iterations=(30, 20)),
        Deformable(similarity=MSE(), scales=(2, 1), iterations=(60, 20), **FLUID),
    ]
    result = run(open_volume(fixed.astype(np.float32), grid=grid), open_volume(moving.astype(np.float32), grid=other), stages)
    found = mapped(result.affine, at + field(result))
    away = np.sqrt(((found - truth) ** 2).sum(axis=0))[fixed > 0.2].mean()
    assert away < 0.15 * np.prod(grid.spacing) ** (1 / 3)


# --- the same, stored otherwise ---------------------------------------------------------------------------------------


def test_the_order_and_direction_of_the_axes_do_not_matter(run):
    """Only rounding differs, which Adam enlarges where gradients are small: 1e-4 voxel and 1e-5 of the intensities on average."""
    fixed, moving, warp = pair()
    grid = Grid(SMALL, (1, 1, 1), (5, -7, 3), oriented=True)
    other = replace(grid, origin=(5.3, -6.6, 2.7))  # so that no point starts on a voxel, where the gradient has two values
    straight = run(open_volume(fixed, grid=grid), open_volume(moving, grid=other), [QUICK])
    turned = [open_volume(a, grid=g) for a, g in (oblique_grid(fixed, grid), oblique_grid(moving, other))]
    oblique = run(*turned, [QUICK])
    back = stored_back(moved(oblique))
    u = np.stack([stored_back(component) for component in field(oblique)])
    inside = body_mask(SMALL, warp)
    away = np.sqrt(((u - field(straight)) ** 2).sum(axis=0))
    assert away[inside].mean() < 1e-4
    assert np.abs(back - moved(straight)).mean() < 1e-5


def stored_back(stored):
    """Undo ``oblique_grid``'s default order (2, 0, 1) and flips (z, x)."""
    return np.flip(stored, (0, 2)).transpose(1, 2, 0)


@pytest.mark.parametrize("similarity", [LNCC(), MI()], ids=["lncc", "mi"])
def test_one_thread_and_two_give_the_same_bits(run, similarity):
    fixed, moving, _ = pair()
    stages = [
        Affine(similarity=similarity, scales=(2,), iterations=(5,)),
        Deformable(similarity=similarity, scales=(2, 1), iterations=(8, 3), tolerance=0),
    ]
    one, two = (run(fixed, moving, stages, threads=n) for n in (1, 2))
    assert [level["losses"] for level in levels(one)] == [level["losses"] for level in levels(two)]
    np.testing.assert_array_equal(field(one), field(two))
    np.testing.assert_array_equal(moved(one), moved(two))


def test_the_chunks_of_the_input_do_not_matter(run):
    fixed, moving, _ = pair()
    stages = [Deformable(similarity=MSE(), scales=(2, 1), iterations=(8, 3))]
    whole = run(fixed, moving, stages)
    for chunks in (7, (40, 5, 44), (1, 36, 44)):
        pieces = run(da.from_array(fixed, chunks), da.from_array(moving, 16), stages)
        np.testing.assert_array_equal(field(pieces), field(whole))
        np.testing.assert_array_equal(moved(pieces), moved(whole))


# --- what the configuration asks for ----------------------------------------------------------------------------------


def test_a_plateau_stops_a_level_early(run):
    fixed, moving, _ = pair()
    stage = Deformable(similarity=MSE(), scales=(4,), iterations=(400,), tolerance=1e-3)
    level = levels(run(fixed, moving, [stage]))[0]
    assert level["stopped"] == "plateau"
    assert len(level["losses"]) < 200


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_masked_region_does_not_count(run, role):
    """A hole pulls its surroundings about; masked out, with the two voxels that the coarse level blurs it into, it does not."""
    fixed, moving, warp = pair()
    images, hole = {"fixed": fixed.copy(), "moving": moving.copy()}, np.zeros(SMALL, bool)
    hole[14:24, 12:24, 16:28] = True
    images[role][hole] = 0
    mask = (~binary_dilation(hole, iterations=2)).astype(np.float32)
    if role == "moving":
        hole = (
            map_coordinates(hole.astype(np.uint8), warp(np.indices(SMALL).astype(float)), order=0) > 0
        )  # as the fixed image sees it
    around = body_mask(SMALL, warp) & binary_dilation(hole, iterations=6) & ~binary_dilation(hole, iterations=3)
    masked = {f"{role}_mask": open_volume(mask)}
    stages = [Deformable(similarity=MSE(), scales=(2, 1), iterations=(60, 20), **FLUID)]
    results = run(fixed, moving, stages), run(**images, config=stages, **masked), run(**images, config=stages)
    whole, hidden, seen = (target_registration_error(field(r), warp, around).mean() for r in results)
    assert seen > 2 * whole
    assert hidden < 1.25 * whole


def test_an_initial_transform_is_where_it_starts(run, tmp_path):
    """A shift of eighteen voxels, given in a file, is kept, and the warp is found on top of it."""
    fixed, moving, warp = pair()
    shift = np.eye(4)
    shift[:3, 3] = [2, -3, 18]
    write_affine(tmp_path / "start.tfm", shift)
    there = open_volume(moving, grid=Grid(SMALL, origin=(2.0, -3.0, 18.0)))
    config = Config(stages=(QUICK,), initial_transform=str(tmp_path / "start.tfm"))
    result = run(fixed, there, config)
    np.testing.assert_allclose(result.affine, shift, atol=1e-12)
    np.testing.assert_allclose(field(result), field(run(fixed, moving, [QUICK])), atol=1e-4)
    assert error(result, warp, SMALL) < 0.25

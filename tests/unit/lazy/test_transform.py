"""Transforms as values: chains, points in both directions, inverses and determinants, on oblique and anisotropic grids."""

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from numba import cuda

from daskreg.errors import AxesError, ConfigError, GridError, InputError, UnitsError, Unreadable
from daskreg.grid import Grid
from daskreg.lazy import blocks as module
from daskreg.lazy.transform import Transform
from tests.phantoms import blobs, rotation, smooth_field
from tests.reference import jacobian_determinant
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, trilinear_by_hand

MIRRORED = Grid((33, 29, 37), (1.6, 2.0, 1.3), (25.0, -22.0, 18.0),
                tuple(map(tuple, rotation((9, -14, 5)) @ np.diag([-1.0, 1.0, 1.0]))), "mm", True)  # fmt: skip


def warp_on(grid, voxels=1.5, seed=5):
    u = smooth_field(grid.shape, voxels, seed=seed).field(grid.shape)
    return np.einsum("rc,czyx->rzyx", grid.index_to_world[:3, :3], u).astype(np.float32)


@pytest.fixture(scope="module")
def first():
    return Transform.of(affine(), FIXED, displacement(), MOVING)


@pytest.fixture(scope="module")
def second():
    """From the moving image to a third one, of the other handedness."""
    shift = np.eye(4)
    shift[:3, :3], shift[:3, 3] = rotation((-4, 2, 7)), (1.0, 2.0, -1.5)
    return Transform.of(shift, MOVING, warp_on(MOVING), MIRRORED)


def by_hand(link, points):
    """A link's map of points (.., 3) in float64."""
    at = link.grid.to_index(points)
    moved = points + np.stack([trilinear_by_hand(c, at) for c in link.displacement], axis=-1)
    return moved @ link.affine[:3, :3].T + link.affine[:3, 3]


def everywhere(grid):
    return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def test_a_chain_is_interpolated_once(first, second):
    image = blobs(MIRRORED.shape)
    moved = first.then(second).apply(image).compute()
    at = MIRRORED.to_index(by_hand(second.links[0], by_hand(first.links[0], everywhere(FIXED))))
    np.testing.assert_allclose(moved, trilinear_by_hand(image, at), atol=1e-4)


def test_the_result_of_a_chain_does_not_depend_on_the_blocks(first, second, monkeypatch):
    chain, image = first.then(second), blobs(MIRRORED.shape)
    whole, determinant = chain.apply(image).compute(), chain.jacobian().compute()
    monkeypatch.setattr(module, "EDGE", 13)
    cut, pieces = chain.apply(image), chain.jacobian()
    assert cut.numblocks == pieces.numblocks == (3, 3, 4)
    np.testing.assert_array_equal(cut.compute(), whole)
    np.testing.assert_array_equal(pieces.compute(), determinant)


def test_points_of_a_chain_are_inverted(first, second):
    chain, rng = first.then(second), np.random.default_rng(0)
    points = FIXED.to_world(rng.uniform(0, np.array(FIXED.shape) - 1, (500, 3)))
    between = MOVING.to_index(first.points(points))  # where a field ends there is a step of one voxel, which has no inverse
    points = points[((between > 0) & (between < np.array(MOVING.shape) - 1)).all(axis=1)]
    assert len(points) > 300
    there = chain.fixed_to_moving_points(points)
    np.testing.assert_allclose(there, by_hand(second.links[0], by_hand(first.links[0], points)), atol=1e-4)
    back = chain.moving_to_fixed_points(there)
    assert np.linalg.norm(FIXED.to_index(back) - FIXED.to_index(points), axis=1).max() < 1e-3
    assert chain.sources(there)[1].max() < 1e-3


def test_indices_count_voxels_of_the_image_of_the_points(first):
    at = np.array([[3.0, 4.5, 5.0], [20.0, 30.0, 35.5]])
    there = first.fixed_to_moving_points(at, "index")
    np.testing.assert_allclose(MOVING.to_world(there), first.points(FIXED.to_world(at)), atol=1e-9)
    np.testing.assert_allclose(first.moving_to_fixed_points(there, "index"), at, atol=1e-3)
    with pytest.raises(GridError, match="index"):
        replace(first, moving=None).fixed_to_moving_points(at, "index")
    with pytest.raises(ConfigError, match="did you mean 'world'"):
        first.fixed_to_moving_points(at, "word")


def test_a_point_outside_the_grid_is_its_own_inverse():
    transform = Transform.of(None, FIXED, displacement())
    far = FIXED.to_world([[-40.0, 10, 10], [500.0, 0, 0]])
    np.testing.assert_array_equal(transform.moving_to_fixed_points(far), far)


def test_the_inverse_resamples_in_agreement_with_points(first, second):
    chain = first.then(second)
    back, image = chain.inverse(), blobs(FIXED.shape)
    assert (back.grid, back.moving) == (MIRRORED, FIXED)
    moved = back.apply(image, like=MOVING).compute()
    back_alone = first.inverse()
    np.testing.assert_allclose(
        back_alone.apply(image).compute(),
        trilinear_by_hand(image, FIXED.to_index(first.moving_to_fixed_points(everywhere(MOVING)))),
        atol=0.02,
    )
    assert moved.shape == MOVING.shape


def test_the_determinant_is_that_of_the_whole_map(first):
    u = np.einsum("rc,czyx->rzyx", FIXED.world_to_index[:3, :3], displacement().astype(float))
    wanted = jacobian_determinant(u) * np.linalg.det(affine()[:3, :3])
    np.testing.assert_allclose(first.jacobian().compute(), wanted, atol=1e-4)
    np.testing.assert_allclose(first.jacobian(whole=False).compute(), jacobian_determinant(u), atol=1e-4)


@pytest.mark.parametrize("block", [5, 128])
def test_jacobian_statistics_are_those_of_the_reference_for_any_blocks(block, monkeypatch):
    monkeypatch.setattr("daskreg.lazy.transform.LARGE", block)
    grid = Grid((9, 12, 7), (2.0, 1.0, 0.5))
    u = np.random.default_rng(0).normal(0, 0.4, (3, *grid.shape))
    transform = Transform.of(None, grid, u * np.array(grid.spacing).reshape(3, 1, 1, 1))
    wanted = jacobian_determinant(u)
    np.testing.assert_allclose(transform.determinant(), wanted, atol=1e-5)
    statistics = transform.jacobian_statistics()
    assert statistics.folded_percent == pytest.approx(100 * (wanted <= 0).mean())
    assert statistics.folded_percent > 0
    ends = wanted.min(), wanted.max(), wanted.mean()
    assert (statistics.smallest, statistics.largest, statistics.mean) == pytest.approx(ends, abs=1e-5)


def test_all_channels_share_their_points(first, monkeypatch):
    image = np.stack([blobs(MOVING.shape, seed=s) for s in range(3)])
    stacked = first.apply(da.from_array(np.stack([image, image + 1]), chunks=20))
    assert stacked.shape == (2, 3, *FIXED.shape)
    np.testing.assert_array_equal(stacked[0, 1].compute(), first.apply(image[1]).compute())


def test_arrays_need_a_grid(first):
    with pytest.raises(GridError, match="grid="):
        first.apply(np.zeros((4, 5, 6), np.float32))
    with pytest.raises(AxesError, match="expected"):
        first.apply(np.zeros((4, 5), np.float32))
    small = Grid((4, 5, 6), (9.0, 9.0, 9.0), tuple(MOVING.origin), unit="mm")
    assert first.apply(np.ones(small.shape, np.float32), grid=small).shape == FIXED.shape
    assert Transform.of(affine(), unit="mm").apply(np.zeros((4, 5, 6)), grid=small).shape == small.shape
    with pytest.raises(GridError, match="like="):
        Transform.of(affine(), unit="mm").jacobian()


def test_cubic_is_exact_on_quadratics_and_better_than_linear(first):
    """Convolution with Keys's kernel is exact on polynomials of second degree, away from the edge."""
    k, j, i = (np.indices(MOVING.shape) - 15) / 15.0
    image = (1 + k * j - 0.5 * i**2 + 0.3 * k**2).astype(np.float32)
    at = MOVING.to_index(by_hand(first.links[0], everywhere(FIXED)))
    inside = ((at > 1) & (at < np.array(MOVING.shape) - 3)).all(axis=-1)
    k, j, i = np.moveaxis(at - 15, -1, 0) / 15.0
    wanted = 1 + k * j - 0.5 * i**2 + 0.3 * k**2
    cubic = np.abs(first.apply(image, interpolation="cubic").compute() - wanted)[inside]
    linear = np.abs(first.apply(image).compute() - wanted)[inside]
    assert inside.mean() > 0.2
    assert cubic.max() < 5e-5
    assert linear.max() > 5e-4


def test_units_are_converted_and_never_guessed(first):
    micro = first.to_unit("um")
    points = FIXED.to_world([[4.0, 5.0, 6.0], [20.0, 22.0, 9.0]])
    np.testing.assert_allclose(micro.points(points * 1000), first.points(points) * 1000, rtol=1e-6)
    shift = Transform.of(np.eye(4) + np.array([[0, 0, 0, 1000.0], *np.zeros((3, 4))]), unit="um")
    np.testing.assert_allclose(first.then(shift).points(points), first.points(points) + np.array([1, 0, 0]), atol=1e-9)
    with pytest.raises(UnitsError, match="unit"):
        first.then(Transform.of())


def test_a_displacement_that_is_not_finite_raises():
    d = displacement().copy()
    d[1, 3, 4, 5] = np.nan
    transform = Transform.of(affine(), FIXED, d, MOVING)
    image = np.ones(MOVING.shape, np.float32)
    for use in (
        lambda: transform.apply(image).compute(),
        lambda: transform.jacobian().compute(),
        lambda: transform.fixed_to_moving_points(FIXED.to_world((3.2, 4.1, 5.5))),
        transform.inverse,
    ):
        with pytest.raises(Unreadable, match=r"not finite at voxel \(3, 4, 5\)"):
            use()


def test_a_gpu_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    grid = Grid((4, 5, 6))
    moved = Transform.of(np.eye(4), grid).apply(np.ones(grid.shape, np.float32), grid=grid, device="cuda")
    with pytest.raises(InputError, match="sees none that Numba can use"):
        moved.compute()

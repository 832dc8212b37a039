"""The inverse of a displacement: its equation, the proof of its error, round trips, and points."""

import numpy as np
import pytest

from daskreg.grid import Grid, Region
from daskreg.lazy.transform import Transform
from daskreg.transforms.accuracy import RoundTrip, SolutionAccuracy
from daskreg.transforms.inverse import DisplacementBounds, InverseField
from daskreg.transforms.link import Link
from daskreg.transforms.lipschitz import lipschitz_bound
from daskreg.transforms.point_inverse import invert_points
from tests.phantoms import smooth_field
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement, trilinear_by_hand


def warp_on(grid, voxels=1.5, seed=5):
    u = smooth_field(grid.shape, voxels, seed=seed).field(grid.shape)
    return np.einsum("rc,czyx->rzyx", grid.index_to_world[:3, :3], u).astype(np.float32)


def everywhere(grid):
    return grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))


def test_inverted_points_are_mapped_back_to_where_they_came_from():
    link = Link(affine(), FIXED, displacement())
    points = FIXED.to_world(np.random.default_rng(0).uniform(2, np.array(FIXED.shape) - 3, (200, 3)))
    found, residual = invert_points(link, link.transform_points(points))
    assert residual.max() <= 1e-4 * min(FIXED.spacing)
    np.testing.assert_allclose(link.transform_points(found), link.transform_points(points), atol=1e-3)


def test_the_inverse_of_an_affine_link_is_exact():
    link = Link(affine())
    points = np.random.default_rng(1).normal(0, 30, (50, 3))
    found, residual = invert_points(link, link.transform_points(points))
    np.testing.assert_allclose(found, points, atol=1e-9)
    np.testing.assert_array_equal(residual, 0)


def test_a_round_trip_returns_to_its_start():
    first = Transform.of(affine(), FIXED, displacement(), MOVING)
    back = first.inverse()
    found = RoundTrip.of(first.links, back.links, FIXED, FIXED.region)
    assert found.mean < 0.01
    assert found.largest < 0.1
    assert (found.voxels, found.failed, found.failed_box) == (FIXED.size, 0, None)
    parts = [
        RoundTrip.of(first.links, back.links, FIXED, FIXED.region & Region((z, 0, 0), (z + 7, 99, 99))) for z in range(0, 30, 7)
    ]
    merged = RoundTrip.merge(parts)
    assert merged.largest == pytest.approx(found.largest, abs=1e-5)
    assert merged.total == pytest.approx(found.total, rel=1e-4)


def test_a_round_trip_locates_folds():
    grid = Grid((24, 24, 24), unit="mm")
    d = np.zeros((3, *grid.shape), np.float32)
    d[2, 8:16, 8:16, 8:12] = 6  # jumps over what lies behind
    forward = Transform.of(None, grid, d)
    found = RoundTrip.of(forward.links, forward.inverse().links, grid, grid.region)
    assert found.failed > 0
    assert found.failed_box is not None
    assert (np.array(found.failed_box.start) >= 4).all()
    assert (np.array(found.failed_box.stop) <= 20).all()
    assert all(a <= w < b for a, w, b in zip(found.failed_box.start, found.worst, found.failed_box.stop, strict=True))


def test_the_proven_bound_on_the_error_holds():
    """Compared with the forward map in float64."""
    grid = Grid((26, 24, 22), (2.0, 1.0, 1.5), unit="mm")
    link = Link(np.eye(4), grid, warp_on(grid, 1.2))
    field = InverseField(link, [DisplacementBounds.of(link, grid.region)])
    v, residual, constant = field.solve(field.grid.region)
    assert constant.max() < 1
    bound = SolutionAccuracy.of(residual, constant, field.grid.region)
    q = everywhere(field.grid)
    off = Transform((link,)).fixed_to_moving_points(q + np.moveaxis(v, 0, -1)) - q
    inside = (
        np.abs(grid.to_index(q + np.moveaxis(v, 0, -1)) - (np.array(grid.shape) - 1) / 2) < (np.array(grid.shape) - 1) / 2
    ).all(-1)
    left = np.linalg.norm(off / np.array(grid.spacing), axis=-1)[inside]
    assert left.max() <= bound.residual + 1e-4
    assert 0 < bound.bound < 0.01
    assert bound.unproven == 0


def test_the_lipschitz_bound_holds_for_every_difference_nearby():
    u = np.random.default_rng(0).normal(0, 0.2, (3, 12, 8, 7)).astype(np.float32)
    u[:, :6] *= 0.1
    rng, bound = np.random.default_rng(1), lipschitz_bound(u)
    a = rng.uniform(0, np.array(u.shape[1:]) - 1, (4000, 3))
    b = np.clip(a + rng.uniform(-0.5, 0.5, a.shape), 0, np.array(u.shape[1:]) - 1)
    value = [np.stack([trilinear_by_hand(c, p) for c in u], axis=-1) for p in (a, b)]
    quotient = np.linalg.norm(value[0] - value[1], axis=1) / np.linalg.norm(a - b, axis=1)
    at = bound[tuple(np.rint(a).astype(int).T)]
    assert (quotient <= at).all()
    assert quotient.max() > at.max() / 4
    assert bound[:3].max() < bound[8:].max() / 4


def test_the_inverse_does_not_depend_on_the_boxes_of_the_bounds():
    link = Link(np.eye(4), FIXED, displacement())
    whole = InverseField(link, [DisplacementBounds.of(link, FIXED.region)])
    small = InverseField(
        link, [DisplacementBounds.of(link, FIXED.region & Region((z, 0, 0), (z + 8, 99, 99))) for z in range(0, 30, 8)]
    )
    assert small.grid == whole.grid
    box = Region((5, 6, 7), (15, 17, 19))
    wanted = whole[(slice(None), *whole.grid.region.slices)][(slice(None), *box.slices)]
    np.testing.assert_array_equal(small[(slice(None), *box.slices)], wanted)

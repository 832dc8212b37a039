"""Sampling against the float64 oracle, far from the origin, and at the edge of the image."""

import numpy as np
import pytest

from daskreg.kernels.device import NO_MASK
from daskreg.kernels.sampling.cpu import (
    add_value,
    add_value_and_gradient,
    affine_sums,
    apply_jacobian_transpose,
    combine_masks,
    gradient_sums,
    mark_domain,
    plane_range,
    pull_back,
    sample,
    sample_nearest,
)
from daskreg.transforms.linear import index_gradient_by_plane, linear_part, to_fixed_point
from tests import reference
from tests.cases import MATRIX, OTHER, SHAPE, empty, image, vectors, weights

TOLERANCE = 2e-6  # of intensities in [0, 1]: seven float32 roundings
IDENTITY = np.eye(4)
PLACE = (0, to_fixed_point(MATRIX), linear_part(MATRIX))
EXACT = np.array([[1, 0.25, -0.5, 0.75], [0.125, 1, 0, -1.5], [-0.25, 0.5, 1, 0.5], [0, 0, 0, 1]])  # nothing to round


@pytest.fixture(scope="module")
def oracle():
    """moved, grad M, domain and u of the oracle."""
    u = vectors(*SHAPE, size=3)
    p = reference.sampling_points(SHAPE, MATRIX[:3], None, u.astype(float))
    return *reference.trilinear(image(*OTHER).astype(float), p), u


def sampled(moving, matrix, u, first=0):
    moved = empty(*u.shape[1:])
    sample(moved.shape, first, to_fixed_point(matrix), linear_part(matrix), u, 0, moving.shape[0], moving, moved)
    return moved


def shifted(t, matrix=IDENTITY):
    there = matrix.copy()
    there[:3, 3] += t
    return there


def test_sample_is_the_oracle_and_nan_out_of_domain(oracle):
    value, _, inside, u = oracle
    moved = sampled(image(*OTHER), MATRIX, u)
    np.testing.assert_array_equal(np.isfinite(moved), inside)
    assert 0.2 < inside.mean() < 0.9
    np.testing.assert_allclose(moved[inside], value[inside], atol=TOLERANCE)


def test_sampling_at_the_voxels_returns_them():
    moving = image(*SHAPE)
    np.testing.assert_array_equal(sampled(moving, IDENTITY, np.zeros((3, *SHAPE), np.float32)), moving)


@pytest.mark.parametrize("first", [1, 30_000, 2_000_000])
def test_far_planes_give_the_bits_of_near_ones(first):
    far = shifted(-EXACT[:3, 0] * first, EXACT)
    u = vectors(*SHAPE, size=2)
    np.testing.assert_array_equal(sampled(image(*OTHER), far, u, first), sampled(image(*OTHER), EXACT, u))


def test_a_block_gives_the_bits_of_the_whole():
    u = vectors(*SHAPE, size=3)
    whole = sampled(image(*OTHER), MATRIX, u)
    for z in range(SHAPE[0]):
        np.testing.assert_array_equal(sampled(image(*OTHER), MATRIX, u[:, z : z + 1], z)[0], whole[z])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("away", [-0.25, 0.25])
def test_each_corner_outside_counts_as_zero(axis, away):
    """A quarter of a voxel beyond the edge, three quarters of its value are left."""
    moving, t = np.ones(SHAPE, np.float32), np.zeros(3)
    t[axis] = away
    moved = sampled(moving, shifted(t), np.zeros((3, *SHAPE), np.float32))
    assert moved.take(0 if away < 0 else -1, axis) == pytest.approx(0.75)
    assert moved.take(-1 if away < 0 else 0, axis) == pytest.approx(1)


@pytest.mark.parametrize("axis", range(3))
def test_a_whole_voxel_beyond_the_edge_is_out_of_domain(axis):
    t = np.zeros(3)
    t[axis] = 1
    moved = sampled(image(*SHAPE), shifted(t), np.zeros((3, *SHAPE), np.float32))
    assert np.isnan(moved.take(-1, axis)).all()
    assert np.isfinite(moved.take(-2, axis)).all()


def test_no_displacement_gives_the_bits_of_one_that_is_zero():
    moved = empty(*SHAPE)
    sample(SHAPE, *PLACE, None, 0, OTHER[0], image(*OTHER), moved)
    np.testing.assert_array_equal(moved, sampled(image(*OTHER), MATRIX, np.zeros((3, *SHAPE), np.float32)))


def test_planes_that_are_not_reached_need_not_be_there():
    """Points between planes 2 and 4: four planes give the bits of all six, and the domain that of the whole image."""
    matrix = MATRIX.copy()
    matrix[0] = 0.25, 0.03, 0.02, 2.01
    place, moved = (0, to_fixed_point(matrix), linear_part(matrix)), empty(*SHAPE)
    whole = sampled(image(*OTHER), matrix, np.zeros((3, *SHAPE), np.float32))
    sample(SHAPE, *place, None, 2, OTHER[0], np.ascontiguousarray(image(*OTHER)[2:]), moved)
    np.testing.assert_array_equal(moved, whole)
    assert 0.3 < np.isfinite(moved).mean() < 1


def test_pull_back_is_the_chain_rule(oracle):
    _, gradient, _, u = oracle
    slope, g = image(*SHAPE, seed=5) - np.float32(0.5), empty(3, *SHAPE)
    pull_back(SHAPE, *PLACE, u, 0, image(*OTHER), slope, g)
    np.testing.assert_allclose(g, reference.displacement_gradient(slope, gradient, MATRIX[:3, :3]), atol=5e-6)


def test_affine_sums_are_the_derivatives_by_matrix_and_shift():
    slope = image(*SHAPE, seed=5) - np.float32(0.5)
    first = 5  # the block's place in the global grid
    there = shifted(-MATRIX[:3, 0] * first, MATRIX)
    rows = affine_sums(SHAPE, first, to_fixed_point(there), linear_part(there), None, 0, image(*OTHER), slope)
    p = reference.sampling_points(SHAPE, MATRIX[:3])
    expected = reference.affine_gradient(slope, reference.trilinear(image(*OTHER).astype(float), p)[1])
    expected[:, 0] += first * expected[:, 3]  # global z
    np.testing.assert_allclose(index_gradient_by_plane(rows, first).sum(axis=1).reshape(3, 4), expected, rtol=1e-4, atol=2e-4)


def test_nearest_takes_the_nearest_voxel_and_zero_outside():
    labels, moved = np.arange(1, np.prod(OTHER) + 1, dtype=np.int32).reshape(OTHER), np.zeros(SHAPE, np.int32)
    u = vectors(*SHAPE, size=3)
    sample_nearest(SHAPE, *PLACE, u, labels, moved)
    p = np.floor(reference.sampling_points(SHAPE, MATRIX[:3], None, u.astype(float)) + 0.5).astype(int)
    n = np.reshape(OTHER, (3, 1, 1, 1))
    there = ((p >= 0) & (p < n)).all(axis=0)
    expected = np.where(there, labels[tuple(np.clip(p, 0, n - 1))], 0)
    np.testing.assert_array_equal(moved, expected)


def test_weights_are_the_fixed_mask_times_the_moving_one_where_it_lands(oracle):
    u, (still, moving) = oracle[3], (weights(*SHAPE), weights(*OTHER))
    found = empty(*SHAPE)
    p = reference.sampling_points(SHAPE, MATRIX[:3], None, u.astype(float))
    landed = reference.trilinear(moving.astype(float), p)[0]
    for mask in (still, NO_MASK):
        combine_masks(SHAPE, *PLACE, u, 0, mask, moving, found)
        np.testing.assert_allclose(found, landed * (still if mask.size else 1), atol=TOLERANCE)
    combine_masks(SHAPE, *PLACE, None, 0, still, moving, found)
    landed = reference.trilinear(moving.astype(float), reference.sampling_points(SHAPE, MATRIX[:3]))[0]
    np.testing.assert_allclose(found, landed * still, atol=TOLERANCE)


def test_parts_of_value_and_gradient_add_up_to_the_bits_of_the_whole(oracle):
    """Shards of one, three and two planes, in an order of the ring."""
    u, image_, slope = oracle[3], image(*OTHER), image(*SHAPE, seed=5) - np.float32(0.5)
    moved, value, g, whole = empty(*SHAPE), empty(*SHAPE), empty(3, *SHAPE), empty(3, *SHAPE)
    for target in (moved, value):
        mark_domain(SHAPE, *PLACE, u, OTHER[0], image_, target)
    for start, stop in ((1, 4), (4, 6), (0, 1)):
        part = np.ascontiguousarray(image_[start:stop])
        add_value(SHAPE, *PLACE, u, start, part, value)
        add_value_and_gradient(SHAPE, *PLACE, u, start, part, moved, g)
    np.testing.assert_array_equal(moved, sampled(image_, MATRIX, u))
    np.testing.assert_array_equal(value, moved)
    slope[np.isnan(moved)] = 0
    np.testing.assert_array_equal(gradient_sums(SHAPE, slope, g), affine_sums(SHAPE, *PLACE, u, 0, image_, slope))
    apply_jacobian_transpose(SHAPE, PLACE[2], slope, g)
    pull_back(SHAPE, *PLACE, u, 0, image_, slope, whole)
    np.testing.assert_array_equal(g, whole)


def test_the_span_of_a_block_is_its_points_least_and_largest_plane(oracle):
    u = oracle[3]
    for displacement in (u, None):
        rows = plane_range((range(2, 5), *SHAPE[1:]), *PLACE, displacement)
        given = None if displacement is None else u.astype(float)
        p = reference.sampling_points(SHAPE, MATRIX[:3], None, given)[0, 2:5]
        np.testing.assert_allclose(rows, [p.max(axis=2), -p.min(axis=2)], atol=2e-6)

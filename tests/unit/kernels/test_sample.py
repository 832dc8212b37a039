"""Sampling against the float64 oracle, far from the origin, and at the edge of the image."""

import numpy as np
import pytest

from daskreg.kernels.device import NO_MASK
from daskreg.kernels.sampling.cpu import (
    CENTERS,
    EXTENT,
    add_value,
    add_value_and_gradient,
    affine_sums,
    apply_jacobian_transpose,
    combine_masks,
    gradient_sums,
    lower_weight,
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
    sample(moved.shape, first, to_fixed_point(matrix), linear_part(matrix), u, 0, moving.shape[0], CENTERS, moving, moved)
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
@pytest.mark.parametrize("away", [-0.25, 0.25, -0.5, 0.49, 0.5, -0.6, 0.6])
def test_beyond_the_outermost_centres_nothing_is_known(axis, away):
    """The domain ends at the centres; for output it ends half a voxel further, with the nearest voxel's value."""
    moving, t = image(*SHAPE), np.zeros(3)
    t[axis] = away
    beyond, other = (0, -1) if away < 0 else (-1, 0)
    matrix, u = shifted(t), np.zeros((3, *SHAPE), np.float32)
    moved = sampled(moving, matrix, u)
    assert np.isnan(moved.take(beyond, axis)).all()
    assert np.isfinite(moved.take(other, axis)).all()
    sample(SHAPE, 0, to_fixed_point(matrix), linear_part(matrix), u, 0, SHAPE[0], EXTENT, moving, moved)
    if -0.5 <= away < 0.5:
        np.testing.assert_allclose(moved.take(beyond, axis), moving.take(beyond, axis), rtol=1e-6)
    else:
        assert np.isnan(moved.take(beyond, axis)).all()


@pytest.mark.parametrize("axis", range(3))
def test_an_axis_of_one_voxel_is_known_over_the_extent_of_the_voxel(axis):
    shape = tuple(1 if a == axis else n for a, n in enumerate(SHAPE))
    for away, known in ((0.4, True), (-0.4, True), (0.6, False), (-0.6, False)):
        t = np.zeros(3)
        t[axis] = away
        moved = sampled(image(*shape), shifted(t), np.zeros((3, *shape), np.float32))
        assert np.isfinite(moved).all() == known


def test_no_displacement_gives_the_bits_of_one_that_is_zero():
    moved = empty(*SHAPE)
    sample(SHAPE, *PLACE, None, 0, OTHER[0], CENTERS, image(*OTHER), moved)
    np.testing.assert_array_equal(moved, sampled(image(*OTHER), MATRIX, np.zeros((3, *SHAPE), np.float32)))


def test_planes_that_are_not_reached_need_not_be_there():
    """Points between planes 2 and 4: four planes give the bits of all six, and the domain that of the whole image."""
    matrix = MATRIX.copy()
    matrix[0] = 0.25, 0.03, 0.02, 2.01
    place, moved = (0, to_fixed_point(matrix), linear_part(matrix)), empty(*SHAPE)
    whole = sampled(image(*OTHER), matrix, np.zeros((3, *SHAPE), np.float32))
    sample(SHAPE, *place, None, 2, OTHER[0], CENTERS, np.ascontiguousarray(image(*OTHER)[2:]), moved)
    np.testing.assert_array_equal(moved, whole)
    assert 0.3 < np.isfinite(moved).mean() < 1


def test_pull_back_is_the_chain_rule(oracle):
    _, gradient, _, u = oracle
    slope, g = image(*SHAPE, seed=5) - np.float32(0.5), empty(3, *SHAPE)
    pull_back(SHAPE, *PLACE, u, 0, OTHER[0], image(*OTHER), slope, g)
    np.testing.assert_allclose(g, reference.displacement_gradient(slope, gradient, MATRIX[:3, :3]), atol=5e-6)


def test_affine_sums_are_the_derivatives_by_matrix_and_shift():
    slope = image(*SHAPE, seed=5) - np.float32(0.5)
    first = 5  # the block's place in the global grid
    there = shifted(-MATRIX[:3, 0] * first, MATRIX)
    rows = affine_sums(SHAPE, first, to_fixed_point(there), linear_part(there), None, 0, OTHER[0], image(*OTHER), slope)
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


def test_weights_are_the_fixed_mask_times_the_least_of_the_moving_one_around_p(oracle):
    u, (still, moving) = oracle[3], (weights(*SHAPE), weights(*OTHER))
    found = empty(*SHAPE)
    p = reference.sampling_points(SHAPE, MATRIX[:3], None, u.astype(float))
    landed = reference.least_weight(moving.astype(float), p)
    for mask in (still, NO_MASK):
        combine_masks(SHAPE, *PLACE, u, 0, OTHER[0], mask, moving, found)
        np.testing.assert_allclose(found, landed * (still if mask.size else 1), atol=TOLERANCE)
    combine_masks(SHAPE, *PLACE, None, 0, OTHER[0], still, moving, found)
    landed = reference.least_weight(moving.astype(float), reference.sampling_points(SHAPE, MATRIX[:3]))
    np.testing.assert_allclose(found, landed * still, atol=TOLERANCE)


def test_parts_of_value_and_gradient_add_up_to_the_bits_of_the_whole(oracle):
    """Shards of one, three and two planes, in an order of the ring."""
    u, image_, slope = oracle[3], image(*OTHER), image(*SHAPE, seed=5) - np.float32(0.5)
    moved, value, g, whole = empty(*SHAPE), empty(*SHAPE), empty(3, *SHAPE), empty(3, *SHAPE)
    for target in (moved, value):
        mark_domain(SHAPE, *PLACE, u, OTHER[0], CENTERS, image_, target)
    for start, stop in ((1, 4), (4, 6), (0, 1)):
        part = np.ascontiguousarray(image_[start:stop])
        add_value(SHAPE, *PLACE, u, start, OTHER[0], part, value)
        add_value_and_gradient(SHAPE, *PLACE, u, start, OTHER[0], part, moved, g)
    np.testing.assert_array_equal(moved, sampled(image_, MATRIX, u))
    np.testing.assert_array_equal(value, moved)
    slope[np.isnan(moved)] = 0
    np.testing.assert_array_equal(gradient_sums(SHAPE, slope, g), affine_sums(SHAPE, *PLACE, u, 0, OTHER[0], image_, slope))
    apply_jacobian_transpose(SHAPE, PLACE[2], slope, g)
    pull_back(SHAPE, *PLACE, u, 0, OTHER[0], image_, slope, whole)
    np.testing.assert_array_equal(g, whole)


def test_the_least_weight_of_shards_is_that_of_the_whole(oracle):
    u, moving = oracle[3], weights(*OTHER)
    whole, parts = empty(*SHAPE), np.ones(SHAPE, np.float32)
    combine_masks(SHAPE, *PLACE, u, 0, OTHER[0], NO_MASK, moving, whole)
    for start, stop in ((1, 4), (4, 6), (0, 1)):
        lower_weight(SHAPE, *PLACE, u, start, OTHER[0], np.ascontiguousarray(moving[start:stop]), parts)
    np.testing.assert_array_equal(parts, whole)


def test_a_value_that_a_masked_voxel_takes_part_in_has_no_weight():
    mask, found, u = np.ones(SHAPE, np.float32), empty(*SHAPE), np.zeros((3, *SHAPE), np.float32)
    mask[:, :, 4] = 0
    for away, masked in ((0.0, [4]), (0.3, [3, 4]), (-0.3, [4, 5])):
        combine_masks(
            SHAPE, 0, to_fixed_point(shifted((0, 0, away))), linear_part(IDENTITY), u, 0, SHAPE[0], NO_MASK, mask, found
        )
        assert np.flatnonzero(found[2, 3] == 0).tolist() == masked


def test_the_span_of_a_block_is_its_points_least_and_largest_plane(oracle):
    u = oracle[3]
    for displacement in (u, None):
        rows = plane_range((range(2, 5), *SHAPE[1:]), *PLACE, displacement)
        given = None if displacement is None else u.astype(float)
        p = reference.sampling_points(SHAPE, MATRIX[:3], None, given)[0, 2:5]
        np.testing.assert_allclose(rows, [p.max(axis=2), -p.min(axis=2)], atol=2e-6)

"""The rotations a global search tries."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

from daskreg.transforms.rotations import (
    between_rotations,
    candidate_rotations,
    local_rotations,
    right_angle_rotations,
    rotation_grid,
)


def quaternions(matrices):
    return Rotation.from_matrix(np.array(matrices)).as_quat()


def distances(rotations, others):
    """Angles in degrees from each of ``others`` to the nearest of ``rotations``."""
    return np.degrees(2 * np.arccos(np.minimum(1, np.abs(others @ rotations.T).max(axis=1))))


def farthest(rotations, starts, rounds=15, tries=40):
    """The angle of the rotation farthest from a set: random search, refined around the worst of ``starts``."""
    rng = np.random.default_rng(0)
    worst = starts[np.argsort(-distances(rotations, starts))[:20]]
    for step in 0.05 / 2.0 ** np.arange(rounds):
        near = worst[:, None] + step * rng.normal(size=(len(worst), tries, 4))
        near = np.concatenate([worst[:, None], near], axis=1)
        near /= np.linalg.norm(near, axis=-1, keepdims=True)
        found = distances(rotations, near.reshape(-1, 4)).reshape(near.shape[:2])
        worst = near[np.arange(len(worst)), found.argmax(axis=1)]
    return distances(rotations, worst).max()


def test_the_grid_covers_all_rotations_nearly_as_evenly_as_its_size_allows():
    grid = quaternions(rotation_grid())
    # balls of rotations within an angle a have the fraction (a - sin a) / pi of the group's volume
    bound = np.degrees(brentq(lambda a: (a - np.sin(a)) / np.pi - 1 / len(grid), 1e-3, np.pi))
    radius = farthest(grid, Rotation.random(20_000, random_state=0).as_quat())
    assert bound < radius < 1.2 * bound
    assert radius < 21
    assert farthest(Rotation.random(len(grid), random_state=0).as_quat(), grid) > 1.5 * radius


def test_rotations_in_between_are_far_from_the_grid_and_leave_less_uncovered():
    grid = quaternions(rotation_grid())
    between = quaternions([turn @ between_rotations() @ cube for turn in local_rotations() for cube in right_angle_rotations()])
    assert np.median(distances(grid, between)) > 15  # none is further than 21
    anywhere = Rotation.random(20_000, random_state=0).as_quat()
    alone, both = (distances(rotations, anywhere).mean() for rotations in (grid, np.concatenate([grid, between])))
    assert both < 0.86 * alone  # at best 2 ** (-1 / 3)


def test_the_grid_has_no_rotation_twice():
    grid = quaternions(rotation_grid())
    products = np.abs(grid @ grid.T)
    np.fill_diagonal(products, 0)
    assert np.degrees(2 * np.arccos(products.max())) > 15


def test_the_grid_begins_with_the_right_angles_and_they_with_the_identity():
    np.testing.assert_array_equal(right_angle_rotations()[0], np.eye(3))
    np.testing.assert_array_equal(rotation_grid()[:24], right_angle_rotations())


def test_the_right_angle_rotations_are_the_24_signed_permutations_of_determinant_one():
    found = np.array(right_angle_rotations())
    assert len({m.tobytes() for m in found}) == 24
    np.testing.assert_array_equal(np.abs(found).sum(axis=1), 1)
    np.testing.assert_array_equal(np.abs(found).sum(axis=2), 1)
    np.testing.assert_allclose(np.linalg.det(found), 1)


@pytest.mark.parametrize(("choice", "n"), [("none", 1), ("right-angles", 24), ("fine", 648)])
def test_flips_add_the_mirror_image_of_every_rotation(choice, n):
    plain, flipped = candidate_rotations(choice, False), candidate_rotations(choice, True)
    assert (len(plain), len(flipped)) == (n, 2 * n)
    np.testing.assert_array_equal(flipped[:n], plain)
    np.testing.assert_allclose(np.linalg.det(flipped[n:]), -1)


def test_the_grid_holds_rotation_matrices_and_is_deterministic():
    grid = np.array(rotation_grid())
    np.testing.assert_allclose(grid @ np.swapaxes(grid, 1, 2), np.broadcast_to(np.eye(3), grid.shape), atol=1e-15)
    np.testing.assert_allclose(np.linalg.det(grid), 1)
    np.testing.assert_array_equal(grid, rotation_grid())

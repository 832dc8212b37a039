"""What a change of lengths costs a stiff affine stage."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daskreg.transforms.linear import linear_about, translation
from daskreg.transforms.strain import Stiffness, strain_energy

START = translation(np.array([3.0, -2, 1])) @ linear_about(np.array([5.0, 6, 7]), np.diag([1.3, 0.8, 1.0]))
RIGID = linear_about(np.array([1.0, 2, 3]), Rotation.from_rotvec([0.3, -0.7, 0.2]).as_matrix())


def test_rigid_motion_costs_nothing():
    value, slope = strain_energy(RIGID @ START, START)
    assert value == pytest.approx(0, abs=1e-20)
    np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_a_stretch_costs_its_square():
    stretch = linear_about(np.zeros(3), np.diag([1.01, 1, 1]))
    assert strain_energy(stretch @ START, START)[0] == pytest.approx(1e-4, rel=0.02)


def test_the_derivative_is_that_of_the_value():
    rng = np.random.default_rng(0)
    world = RIGID @ START + 0.05 * rng.standard_normal((4, 4))
    stiff = Stiffness(lambda w: (-0.5 + float(w[0, 0]), np.eye(4)[:1].T @ np.eye(4)[:1]), START, 10.0)
    first, slope = stiff(world)
    for at in np.ndindex(3, 4):
        step = np.zeros((4, 4))
        step[at] = 1e-6
        assert (stiff(world + step)[0] - first) / 1e-6 == pytest.approx(slope[at], abs=1e-4)

"""The whole map of points, and how it stretches space."""

import numpy as np
import pytest

from daskreg.grid import Grid, Region
from daskreg.transforms import composite
from daskreg.transforms.composite import Stretch, Transform
from tests.reference import jacobian_determinant
from tests.unit.workflows.runs import FIXED, affine, displacement, trilinear_by_hand


def test_points_go_through_displacement_then_affine():
    rng = np.random.default_rng(0)
    index = rng.uniform(-3, 1, (200, 3)) + rng.random((200, 1)) * np.array(FIXED.shape)
    d = displacement()
    x = FIXED.to_world(index)
    x = x + np.stack([trilinear_by_hand(c, index) for c in d], axis=-1)
    wanted = x @ affine()[:3, :3].T + affine()[:3, 3]
    given = FIXED.to_world(index).reshape(20, 10, 3)
    np.testing.assert_allclose(Transform(affine(), FIXED, d).points(given), wanted.reshape(20, 10, 3), atol=1e-6)


def test_points_read_only_the_blocks_they_are_in(monkeypatch):
    monkeypatch.setattr(composite, "BLOCK", 8)
    read = []

    class Watched:
        shape = (3, *FIXED.shape)

        def __getitem__(self, index):
            read.append(displacement()[index])
            return read[-1]

    points = FIXED.to_world([[1.5, 2.5, 3.5], [28.5, 2.2, 39.9], [2.5, 1.5, 3.0], [500, 0, 0]])
    np.testing.assert_allclose(
        Transform(affine(), FIXED, Watched()).points(points), Transform(affine(), FIXED, displacement()).points(points)
    )
    assert len(read) == 2
    assert sum(r.size for r in read) < 3 * 100


def test_without_displacement_it_is_the_affine():
    transform = Transform(affine(), FIXED)
    np.testing.assert_allclose(transform.points([1.0, 2.0, 3.0]), (affine() @ [1, 2, 3, 1])[:3])
    assert transform.stretch() == Stretch()
    np.testing.assert_array_equal(transform.jacobian(Region((0, 0, 0), (2, 2, 2))), 1)


@pytest.mark.parametrize("block", [5, 128])
def test_stretch_is_that_of_the_reference_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(composite, "LARGE", block)
    grid = Grid((9, 12, 7), (2.0, 1.0, 0.5))
    u = np.random.default_rng(0).normal(0, 0.4, (3, *grid.shape))
    transform = Transform(np.eye(4), grid, u * np.array(grid.spacing).reshape(3, 1, 1, 1))
    wanted = jacobian_determinant(u)
    np.testing.assert_allclose(transform.jacobian(), wanted, atol=1e-5)
    stretch = transform.stretch()
    assert stretch.folded_percent == pytest.approx(100 * (wanted <= 0).mean())
    assert stretch.folded_percent > 0
    assert (stretch.smallest, stretch.largest, stretch.mean) == pytest.approx(
        (wanted.min(), wanted.max(), wanted.mean()), abs=1e-5
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2, 2, 2\) does not fit"):
        Transform(np.eye(4), FIXED, np.zeros((3, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"\(3, 3\) was given"):
        Transform(np.eye(3), FIXED)
    with pytest.raises(ValueError, match=r"\(4, 2\) were given"):
        Transform(np.eye(4), FIXED).points(np.zeros((4, 2)))

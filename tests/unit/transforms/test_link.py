"""A link: points, what is read for them, its determinant."""

import numpy as np
import pytest

from daskreg.grid import Region
from daskreg.transforms import link as module
from daskreg.transforms.jacobian import jacobian_determinant
from daskreg.transforms.link import Link
from tests.unit.workflows.runs import FIXED, affine, displacement, trilinear_by_hand


def test_points_go_through_displacement_then_affine():
    rng = np.random.default_rng(0)
    index = rng.uniform(-3, 1, (200, 3)) + rng.random((200, 1)) * np.array(FIXED.shape)
    d = displacement()
    x = FIXED.to_world(index)
    x = x + np.stack([trilinear_by_hand(c, index) for c in d], axis=-1)
    wanted = x @ affine()[:3, :3].T + affine()[:3, 3]
    given = FIXED.to_world(index).reshape(20, 10, 3)
    np.testing.assert_allclose(Link(affine(), FIXED, d).transform_points(given), wanted.reshape(20, 10, 3), atol=1e-6)


def test_only_boxes_that_hold_points_are_read(monkeypatch):
    monkeypatch.setattr(module, "LOOKUP_EDGE", 8)
    read = []

    class Watched:
        shape = (3, *FIXED.shape)

        def __getitem__(self, index):
            read.append(displacement()[index])
            return read[-1]

    points = FIXED.to_world([[1.5, 2.5, 3.5], [28.5, 2.2, 39.9], [2.5, 1.5, 3.0], [500, 0, 0]])
    np.testing.assert_allclose(
        Link(affine(), FIXED, Watched()).transform_points(points),
        Link(affine(), FIXED, displacement()).transform_points(points),
    )
    assert len(read) == 2
    assert sum(r.size for r in read) < 3 * 100


def test_a_link_without_displacement_is_its_affine():
    link = Link(affine(), FIXED)
    np.testing.assert_allclose(link.transform_points([1.0, 2.0, 3.0]), (affine() @ [1, 2, 3, 1])[:3])
    box = Region((0, 0, 0), (2, 2, 2))
    np.testing.assert_array_equal(jacobian_determinant((link,), FIXED, box, whole=False), 1)
    np.testing.assert_allclose(jacobian_determinant((link,), FIXED, box), np.linalg.det(affine()[:3, :3]), rtol=1e-6)


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"\(3, 2, 2, 2\) does not fit"):
        Link(np.eye(4), FIXED, np.zeros((3, 2, 2, 2)))
    with pytest.raises(ValueError, match=r"\(3, 3\) was given"):
        Link(np.eye(3), FIXED)
    with pytest.raises(ValueError, match=r"\(4, 2\) were given"):
        Link(np.eye(4), FIXED).transform_points(np.zeros((4, 2)))

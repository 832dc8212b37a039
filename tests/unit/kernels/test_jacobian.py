"""det(I + Du)."""

import numpy as np
import pytest

from daskreg.kernels.jacobian import jacobian
from tests import reference
from tests.cases import SHAPE, empty, vectors


def determinant(u, lead=0, planes=None):
    found = empty(planes or u.shape[1], *u.shape[2:])
    jacobian(found.shape, lead, u, found)
    return found


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 2), (1, 8, 9), (7, 8, 1)])
def test_the_determinant_is_the_oracle(shape):
    u = vectors(*shape)
    np.testing.assert_allclose(determinant(u), reference.jacobian_determinant(u.astype(float)), atol=1e-5)


def test_an_affine_displacement_has_its_own_determinant():
    matrix = np.array([[0.2, 0.1, 0], [0, -0.3, 0.05], [0.1, 0, 0.4]])
    u = np.einsum("ij,jzyx->izyx", matrix, np.indices(SHAPE)).astype(np.float32)
    np.testing.assert_allclose(determinant(u), np.linalg.det(np.eye(3) + matrix), atol=1e-5)


def test_a_reflected_axis_folds():
    u = np.zeros((3, *SHAPE), np.float32)
    u[2] = -2 * np.arange(9)
    assert (determinant(u) < 0).all()


def test_a_block_with_its_halo_gives_the_bits_of_the_whole():
    u = vectors(*SHAPE)
    block = determinant(np.ascontiguousarray(u[:, 2:6]), lead=1, planes=2)
    np.testing.assert_array_equal(block, determinant(u)[3:5])

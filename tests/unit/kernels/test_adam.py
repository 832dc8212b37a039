"""Adam's direction, moments and longest step."""

import numpy as np
import pytest

from daskreg.kernels.adam.cpu import adam
from daskreg.kernels.smoothing.cpu import gaussian_table, gaussian_weights
from tests import reference
from tests.cases import SHAPE, empty, rates, vectors


@pytest.mark.parametrize("epsilon", [1e-8, 0.01])
@pytest.mark.parametrize("t", [1, 4, 300])
def test_adam_is_the_oracle_with_the_last_pass_of_the_gaussian(t, epsilon):
    g, m, v, d = vectors(*SHAPE), vectors(*SHAPE, seed=7), np.square(vectors(*SHAPE, seed=8)), empty(3, *SHAPE)
    smooth = reference.gaussian_smooth(g.astype(float), (0, 0, 1))
    direction, first, second = reference.adam_step(smooth, m, v, t, eps=epsilon)
    longest = adam(SHAPE, 2, gaussian_table(9, 1.0), gaussian_weights(1.0), rates(t, epsilon), g, m, v, d)
    np.testing.assert_allclose(m, first, atol=1e-6)
    np.testing.assert_allclose(v, second, atol=1e-6)
    np.testing.assert_allclose(d, -direction, rtol=2e-5, atol=1e-5 * np.abs(direction).max())
    np.testing.assert_allclose(longest[0], (direction**2).sum(axis=0).max(axis=-1), rtol=5e-5)
    np.testing.assert_allclose(0.25 / max(1, np.sqrt(longest.max())) * d, reference.limit_step(direction, 0.5), atol=1e-5)


def test_a_gradient_of_zero_does_not_move():
    g, m, v, d = (empty(3, *SHAPE) for _ in range(4))
    longest = adam(SHAPE, 2, gaussian_table(9, 1.0), gaussian_weights(1.0), rates(1), g, m, v, d)
    assert not d.any()
    assert longest.max() == 0

"""Adam's direction, moments and longest step."""

import numpy as np
import pytest

from daskreg.kernels.adam.cpu import adam
from daskreg.kernels.adam.moments import pack_moments, unpack_moments
from daskreg.kernels.adam.packed import packed_adam, packed_adam_direction
from daskreg.kernels.smoothing.cpu import gaussian_table, gaussian_weights
from daskreg.optimizers.adam import Adam
from daskreg.optimizers.adam.update import AdamOnCpu, chance_level
from tests import reference
from tests.cases import SHAPE, empty, rates, vectors


@pytest.mark.parametrize(("epsilon", "chance"), [(1e-8, 0), (0.01, 0), (0.01, 0.3)])
@pytest.mark.parametrize("t", [1, 4, 300])
def test_adam_is_the_oracle_with_the_last_pass_of_the_gaussian(t, epsilon, chance):
    g, m, v, d = vectors(*SHAPE), vectors(*SHAPE, seed=7), np.square(vectors(*SHAPE, seed=8)), empty(3, *SHAPE)
    smooth = reference.gaussian_smooth(g.astype(float), (0, 0, 1))
    direction, first, second = reference.adam_step(smooth, m, v, t, eps=epsilon, chance=chance)
    longest = adam(SHAPE, 2, gaussian_table(9, 1.0), gaussian_weights(1.0), rates(t, epsilon, chance), g, m, v, d)
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


@pytest.mark.parametrize("chance", [0, 0.3])
def test_packed_moments_are_those_of_adam_rounded_and_the_direction_follows_from_them(chance):
    g, m, v = vectors(*SHAPE), vectors(*SHAPE, seed=7), np.square(vectors(*SHAPE, seed=8))
    words = pack_moments(m, v)
    m, v = (a.copy() for a in unpack_moments(words))
    d, packed, again = (empty(3, *SHAPE) for _ in range(3))
    row, filter_ = rates(4, 0.01, chance), (2, gaussian_table(9, 1.0), gaussian_weights(1.0))
    adam(SHAPE, *filter_, row, g, m, v, d)
    longest = packed_adam(SHAPE, *filter_, row, 4, 17, g, words, packed)
    first, second = unpack_moments(words)
    np.testing.assert_allclose(first, m, rtol=2**-8)
    np.testing.assert_allclose(second, v, rtol=2**-8)
    assert abs((second / v - 1).mean()) < 2e-4  # as often up as down
    np.testing.assert_allclose(longest[0], np.square(packed).sum(axis=0).max(axis=-1), rtol=1e-6)
    packed_adam_direction(SHAPE, row, words, again)
    np.testing.assert_array_equal(again, packed)


def test_rounding_depends_on_the_plane_of_the_grid():
    g, words = vectors(*SHAPE), pack_moments(vectors(*SHAPE, seed=7), np.square(vectors(*SHAPE, seed=8)))
    filter_, part = (0, gaussian_table(9, 0), gaussian_weights(0)), words[:, 2:].copy()
    packed_adam(SHAPE, *filter_, rates(4), 4, 17, g, words, empty(3, *SHAPE))
    shape = (SHAPE[0] - 2, *SHAPE[1:])
    packed_adam(shape, *filter_, rates(4), 4, 19, g[:, 2:].copy(), part, empty(3, *shape))
    np.testing.assert_array_equal(part, words[:, 2:])


def test_the_chance_level_is_what_independent_gradients_have():
    """m^2/v of 20 000 sequences of independent gradients; v is their known mean square."""
    gradients = np.random.default_rng(0).standard_normal((6, 20_000))
    m = np.zeros(20_000)
    for t, g in enumerate(gradients, 1):
        m = 0.8 * m + 0.2 * g
        expected = chance_level(0.8, t) if t > 1 else 1
        assert np.square(m / (1 - 0.8**t)).mean() == pytest.approx(expected, rel=0.05)
    assert chance_level(0.8, 1) == 0  # the first step has nothing to compare with
    assert chance_level(0.9, 10_000) == pytest.approx(0.1 / 1.9)


def steps(gradients, significance):
    """|d| of a voxel after each gradient."""
    optimizer = Adam(significance=significance).build("float32", "cpu")
    (m, v, d), found = [empty(3, 1, 1, 1) for _ in range(3)], []
    for t, value in enumerate(gradients, 1):
        g = np.full((3, 1, 1, 1), value, np.float32)
        row = optimizer.coefficients(t, 1e-3)
        adam((1, 1, 1), 0, gaussian_table(1, 0), (np.float32(1),), row, g, m, v, d)
        found.append(float(np.abs(d).max()))
    return np.array(found)


def test_gradients_that_change_sign_do_not_move_a_voxel_and_steady_ones_do():
    turning, steady = [(-1) ** k for k in range(40)], [1] * 40
    assert steps(turning, 1)[1:].max() == 0
    assert steps(turning, 0)[-10:].min() > 0.03
    np.testing.assert_allclose(steps(steady, 1)[-1], 0.95, atol=0.01)  # 1 - 0.1 / 1.9
    assert steps(steady, 0)[-1] == pytest.approx(1, abs=1e-3)


def test_epsilon_is_of_a_clear_gradient_and_says_how_far_a_twentieth_of_one_moves():
    default, larger = AdamOnCpu((0.9, 0.99)), AdamOnCpu((0.9, 0.99), epsilon=0.2)
    assert default.coefficients(1, 0.5)[4] == np.float32(0.05)
    assert larger.coefficients(1, 0.5)[4] == np.float32(0.1)
    assert (default.at_rest, larger.at_rest) == (1 / 3, pytest.approx(0.05 / 0.25))
    assert Adam().epsilon == 0.1

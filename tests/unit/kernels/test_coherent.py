"""Adam where v says how much of the mean gradient is chance: v, the direction, and what moves."""

import numpy as np
import pytest

from daskreg.kernels.adam.coherent import coherent_adam, packed_coherent_direction
from daskreg.kernels.adam.moments import unpack_moments
from daskreg.kernels.smoothing.cpu import gaussian_norms, gaussian_shares, gaussian_table, gaussian_weights
from daskreg.optimizers.adam import Adam
from tests import reference
from tests.cases import SHAPE, empty, rates, vectors

SIGMA = 1.0


class OneStep:
    """``Step`` of a whole grid on one rank."""

    first, idle = 0, False

    def __init__(self, optimizer, gradient, state):
        self.box, self.planes = gradient.shape[1:], gradient.shape[1]
        self.gradient, self.direction, self.state = gradient.copy(), np.full_like(gradient, np.nan), state
        self.coefficients, self.clock = np.stack([optimizer.coefficients(t, 1.0) for t in (1, 2, 3)]), np.array([0], np.int32)
        self.longest, self.filter = np.zeros(1, np.float32), Gaussian(self.box)


class Gaussian:
    """``Filter``."""

    def __init__(self, shape):
        self.weights, self.reach = gaussian_weights(SIGMA), len(gaussian_weights(SIGMA)) // 2
        makers = gaussian_table, gaussian_norms, gaussian_shares
        self.tables, self.norms, self.shares = ([make(n, SIGMA) for n in shape] for make in makers)

    def along_zy(self, box, field, scratch):
        field[...] = reference.gaussian_smooth(field.astype(float), (SIGMA, SIGMA, 0))


def stepped(gradients, storage="float32", **given):
    """The step after these gradients."""
    optimizer = Adam(**{"coherence": 0.5, "epsilon": 0.1} | given).build(storage, "cpu")
    state = optimizer.init(lambda dtype=np.float32: np.zeros(gradients[0].shape, dtype))
    for t, g in enumerate(gradients):
        step = OneStep(optimizer, g, state)
        step.clock[0] = t
        optimizer.step(step)
    return optimizer, step


def oracle(gradients, coherence=0.5, epsilon=0.1, betas=(0.9, 0.99)):
    """The direction of the last of these gradients, in float64."""
    m, v, part = 0.0, 0.0, sum_of_squares(gradients[0].shape[1:])
    for g in gradients:
        g = g.astype(float)
        squares = reference.gaussian_smooth((g**2).sum(axis=0)[None], SIGMA)[0]
        m = betas[0] * m + (1 - betas[0]) * reference.gaussian_smooth(g, SIGMA)
        v = betas[1] * v + (1 - betas[1]) * part * squares
    m, v = m / (1 - betas[0] ** len(gradients)), v / (1 - betas[1] ** len(gradients))
    square = (m**2).sum(axis=0)
    return -m * np.maximum(0, 1 - coherence * v / square) / (np.sqrt(square / 3) + epsilon)


def sum_of_squares(shape):
    """(Z, Y, X): of what the filter makes of impulses, one at each voxel of an axis, at every voxel."""
    parts = []
    for n in shape:
        impulses = np.eye(n).reshape(n, n, 1, 1)
        parts.append((reference.gaussian_smooth(impulses, (SIGMA, 0, 0)) ** 2).sum(axis=0).ravel())
    return np.einsum("i,j,k->ijk", *parts)


@pytest.mark.parametrize("coherence", [0.5, 4])
def test_the_step_is_the_oracle(coherence):
    gradients = [vectors(*SHAPE, seed=s) for s in (1, 2, 3)]
    _, step = stepped(gradients, coherence=coherence)
    expected = oracle(gradients, coherence)
    np.testing.assert_allclose(step.direction, expected, atol=2e-5)
    assert step.longest[0] == pytest.approx((expected**2).sum(axis=0).max(), rel=1e-4)
    assert (step.direction == 0).mean() > 0.1 or coherence < 1


def test_packed_moments_are_those_rounded_and_the_direction_follows_from_them():
    gradients = [vectors(*SHAPE, seed=s) for s in (1, 2, 3)]
    plain, packed = stepped(gradients)[1], stepped(gradients, "moments")[1]
    m, v = unpack_moments(packed.state["moments"])
    np.testing.assert_allclose(m, plain.state["m"], rtol=2**-6, atol=1e-3)
    np.testing.assert_allclose(v[0], plain.state["v"][0], rtol=2**-6)
    assert not v[1:].any()
    np.testing.assert_allclose(packed.direction, plain.direction, atol=0.05)
    again = empty(3, *SHAPE)
    packed_coherent_direction(SHAPE, packed.coefficients[2], packed.state["moments"], again)
    np.testing.assert_array_equal(again, packed.direction)


def test_a_direction_is_restored_from_the_moments():
    optimizer, step = stepped([vectors(*SHAPE, seed=s) for s in (1, 2)])
    made, step.direction = step.direction, np.full_like(step.direction, np.nan)
    optimizer.restore_direction(step)
    np.testing.assert_array_equal(step.direction, made)


def test_independent_gradients_move_less_than_half_as_far_as_those_that_agree():
    """One gradient of independent voxels, the same at every iteration, as the noise of an image is; Adam moves both as far."""
    shape, rng = (20, 21, 22), np.random.default_rng(0)
    noise = rng.standard_normal((3, *shape)).astype(np.float32)
    agree = np.full((3, *shape), 0.2, np.float32)
    far = [np.linalg.norm(stepped([g] * 3, coherence=1, epsilon=1e-3)[1].direction, axis=0).mean() for g in (noise, agree)]
    assert far[0] < 0.45 * far[1]
    assert far[1] == pytest.approx(np.sqrt(3) * (1 - 0.0226), rel=0.02)


@pytest.mark.parametrize("shape", [(1, 9, 10), (2, 8, 1), (6, 7, 8)], ids=["a plane", "two rows", "a box"])
def test_chance_is_the_mean_square_of_filtered_independent_gradients(shape):
    """In a plane, where the filter averages over fewer voxels, and at the borders."""
    rng = np.random.default_rng(1)
    signs = rng.choice(np.array([-1, 1], np.float32), (500, 3, *shape))  # |g|^2 is 3 everywhere
    found = stepped([signs[0]])[1].state["v"][0] / (1 - 0.99)
    expected = np.mean([(reference.gaussian_smooth(g.astype(float), SIGMA) ** 2).sum(axis=0) for g in signs], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.25)
    assert (found / expected).mean() == pytest.approx(1, abs=0.05)


def test_a_gradient_of_zero_does_not_move():
    g, m, v, d = (empty(3, *SHAPE) for _ in range(4))
    longest = coherent_adam(SHAPE, 2, gaussian_table(9, 1.0), gaussian_weights(1.0), rates(1, 0.1, 0.5), g, m, v, d)
    assert not d.any()
    assert longest.max() == 0

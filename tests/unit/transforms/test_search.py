"""The translation of a global search, and the moments of an image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from daskreg.grid import Grid
from daskreg.transforms.moments import axis_rotations, center_of_mass, principal_axes
from daskreg.transforms.search import PEAK_DISTANCE, Correlator, band_pass

SHAPE = (24, 28, 32)


def shifted(image, shift):
    """``moving`` with ``moving(x - shift) = image(x)``, 0 where nothing is known, and where it is known."""
    out, known = np.zeros_like(image), np.zeros(image.shape, bool)
    source = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift, image.shape, strict=True))
    target = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(shift, image.shape, strict=True))
    out[target], known[target] = image[source], True
    return out, known


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(-6, 6)] * 3))
def test_the_best_shift_is_the_one_between_two_images(shift):
    image = np.random.default_rng(0).random(SHAPE, np.float32)
    inside = np.ones(SHAPE, bool)
    moving, known = shifted(image, shift)
    correlator = Correlator(band_pass(image, inside, False), inside, SHAPE, 0.25)
    best = correlator.best(band_pass(moving, known, False), known, 1)[0]
    np.testing.assert_array_equal(best.shift, shift)
    assert best.score > 0.9


def test_peaks_are_apart_and_in_order():
    image = np.random.default_rng(1).random(SHAPE, np.float32)
    inside = np.ones(SHAPE, bool)
    found = Correlator(image - 0.5, inside, SHAPE, 0.25).best(image - 0.5, inside, 4)
    assert [c.weight for c in found] == sorted((c.weight for c in found), reverse=True)
    for k, a in enumerate(found):
        assert all(np.abs(a.shift - b.shift).max() > PEAK_DISTANCE for b in found[:k])


def test_shifts_with_too_little_overlap_do_not_count():
    image = np.random.default_rng(2).random(SHAPE, np.float32) - 0.5
    inside = np.ones(SHAPE, bool)
    score, overlap = Correlator(image, inside, SHAPE, 0.5).scores(image, inside)
    assert (score[overlap < 0.499 * image.size] == -1).all()
    assert score.flat[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("edges", [False, True])
def test_a_band_passed_constant_is_zero(edges):
    inside = np.zeros(SHAPE, bool)
    inside[4:-4, 4:-4, 4:-4] = True
    found = band_pass(np.full(SHAPE, 7, np.float32), inside, edges)
    np.testing.assert_allclose(found, 0, atol=2e-5)


def test_the_centre_of_mass_is_a_world_position():
    grid = Grid((9, 9, 9), (1.0, 2.0, 3.0), (10.0, 0.0, -5.0))
    image = np.zeros(grid.shape, np.float32)
    image[2, 3, 4] = 5
    image[8, 8, 8] = -100
    np.testing.assert_allclose(center_of_mass(image, grid), grid.to_world([2, 3, 4]))
    np.testing.assert_allclose(center_of_mass(np.zeros_like(image), grid), grid.center)


def test_one_of_the_axis_rotations_undoes_a_rotation():
    rotation = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
    fixed = Grid((30, 30, 30), origin=(-14.5,) * 3)
    x = fixed.to_world(np.moveaxis(np.indices(fixed.shape), 0, -1))
    extents = np.array([4.0, 6.0, 9.0])
    image, rotated = (np.exp(-(((x @ r) / extents) ** 2).sum(-1)).astype(np.float32) for r in (np.eye(3), rotation))
    candidates = axis_rotations(principal_axes(image, fixed), principal_axes(rotated, fixed))
    assert all(np.linalg.det(c) == pytest.approx(1) for c in candidates)
    assert min(np.abs(c - rotation).max() for c in candidates) < 0.05


def test_principal_axes_are_right_handed_and_in_order_of_variance():
    grid = Grid((20, 24, 28))
    z, y, x = np.indices(grid.shape) - (np.array(grid.shape) - 1).reshape(3, 1, 1, 1) / 2
    axes = principal_axes(np.exp(-((z / 2) ** 2 + (y / 4) ** 2 + (x / 6) ** 2)).astype(np.float32), grid)
    np.testing.assert_allclose(np.abs(axes), np.eye(3), atol=1e-6)
    assert np.linalg.det(axes) == pytest.approx(1)

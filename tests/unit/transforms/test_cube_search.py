"""All right-angle rotations at once are what correlations with images turned one by one are."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from daskreg.transforms.cube_search import CubeCorrelator, turned
from daskreg.transforms.orientation import mixing
from daskreg.transforms.rotations import right_angle_rotations
from daskreg.transforms.search import Correlator

SHAPE = (10, 14, 12)


def tensors(shape, seed):
    """Components of some tensors, and a domain."""
    found = gaussian_filter(np.random.default_rng(seed).standard_normal((5, *shape)), (0, 1.5, 1.5, 1.5))
    return found.astype(np.float32), np.ones(shape, bool)


def test_a_turned_array_has_each_voxel_where_the_rotation_takes_it():
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    middle = (np.array(SHAPE) - 1) / 2
    for cube in right_angle_rotations():
        out = turned(array, cube)
        to = cube @ (np.array([1, 2, 3]) - middle) + (np.array(out.shape) - 1) / 2
        assert out[tuple(to.round().astype(int))] == array[1, 2, 3]


@pytest.mark.parametrize("together", [1, 24])
def test_the_peaks_are_those_of_single_correlations(together):
    (fixed, inside), (moving, there) = tensors(SHAPE, 0), tensors((16, 16, 16), 1)
    cubes = right_angle_rotations()
    peaks = CubeCorrelator(fixed, inside, there.shape, cubes, 0.3, together).best(moving, there, 1)
    assert sorted(peaks.cube) == list(range(24))
    for k in range(0, 24, 5):
        cube = cubes[peaks.cube[k]]
        alone = turned(np.einsum("ij,jzyx->izyx", mixing(cube.T), fixed).astype(np.float32), cube)
        expected = Correlator(alone, turned(inside, cube), there.shape, 0.3).best(moving, there, 1)[0]
        np.testing.assert_allclose(peaks.score[k], expected.score, rtol=1e-4)
        np.testing.assert_allclose(peaks.overlap[k], expected.overlap, rtol=1e-3)
        np.testing.assert_array_equal(peaks.shift[k], expected.shift + (16 - np.array(alone.shape[1:])) / 2)


def test_long_axes_are_summed_at_every_other_shift_and_lead_to_the_same_place():
    whole, _ = tensors((26, 30, 28), 0)
    fixed, moving, cubes = whole[:, 2:20, 4:24, 3:21], whole[:, 5:26, 6:27, 5:26], [np.eye(3)]
    inside, there = np.ones(fixed.shape[1:], bool), np.ones(moving.shape[1:], bool)
    correlator = CubeCorrelator(fixed, inside, there.shape, cubes, 0.3)
    peak = correlator.best(moving, there, 1)
    alone = np.einsum("ij,jzyx->izyx", mixing(np.eye(3)), fixed).astype(np.float32)
    expected = Correlator(alone, inside, there.shape, 0.3).best(moving, there, 1)[0]
    assert correlator.batches[0].spectra.halved.shape[-3] * 2 == correlator.batches[0].shape[0]
    np.testing.assert_array_equal(peak.shift, [expected.shift + (21 - np.array(inside.shape)) / 2])
    np.testing.assert_allclose([peak.score[0], peak.overlap[0]], [expected.score, expected.overlap], rtol=0.04)


def test_several_translations_of_a_rotation_are_its_peaks_in_order():
    (fixed, inside), (moving, there) = tensors(SHAPE, 0), tensors((16, 16, 16), 1)
    peaks = CubeCorrelator(fixed, inside, there.shape, [np.eye(3)], 0.3).best(moving, there, 4)
    weights = peaks.score * np.sqrt(peaks.overlap)
    assert list(weights) == sorted(weights, reverse=True)
    apart = np.abs(peaks.shift[:, None] - peaks.shift).max(axis=2)
    assert (apart[~np.eye(4, dtype=bool)] > 3).all()

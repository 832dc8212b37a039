"""Histograms in integers, and the slope of mutual information."""

import numpy as np
import pytest

from daskreg.kernels.device import NO_MASK
from daskreg.kernels.intensity_histogram.cpu import intensity_histogram
from daskreg.similarity.mutual_information.cpu import FIXED_POINT, information_gradient, joint_histogram
from tests import reference
from tests.cases import BINS, SHAPE, image, moved, weights

UNIT = (0.0, 1.0)


def counted(tiles, weight, values=None):
    counts = np.zeros((tiles, BINS, BINS), np.int64)
    joint_histogram(SHAPE, counts, image(*SHAPE), weight, moved(*SHAPE) if values is None else values)
    return counts.sum(axis=0)


def test_the_joint_histogram_is_the_oracle():
    values = moved(*SHAPE)
    inside = np.isfinite(values)
    w = np.where(inside, weights(*SHAPE), 0).astype(float)
    counts = counted(1, weights(*SHAPE))
    p = reference.joint_histogram(image(*SHAPE), np.where(inside, values, 0), w, BINS, UNIT, UNIT)
    np.testing.assert_allclose(counts / counts.sum(), p, atol=1e-7)
    assert counts.sum() / FIXED_POINT == pytest.approx(w.sum(), rel=1e-5)


@pytest.mark.parametrize("weight", [weights(*SHAPE), NO_MASK])
@pytest.mark.parametrize("tiles", [2, 5, 56])
def test_the_integers_do_not_depend_on_the_number_of_tiles(tiles, weight):
    np.testing.assert_array_equal(counted(tiles, weight), counted(1, weight))


def test_intensities_beyond_the_range_count_in_the_last_bins():
    values = np.full(SHAPE, -3, np.float32)
    values[:3] = 7
    counts = counted(1, NO_MASK, values)
    assert set(np.flatnonzero(counts.sum(axis=1))) == {1, 2, 3, BINS - 4, BINS - 3, BINS - 2}


def test_the_slope_is_the_oracle_and_zero_where_clamped():
    table = image(BINS, BINS, seed=6) - np.float32(0.5)
    values = moved(*SHAPE)
    values[0, 0, :4] = [-0.5, 0, 1, 1.5]
    inside, found = np.isfinite(values), values.copy()
    information_gradient(SHAPE, table, image(*SHAPE), weights(*SHAPE), found)
    slope = reference.parzen_slope(np.where(inside, values, -1).astype(float), BINS, UNIT)
    expected = -np.einsum(
        "ij,izyx,jzyx->zyx", table.astype(float), slope, reference.parzen(image(*SHAPE).astype(float), BINS, UNIT)
    )
    np.testing.assert_allclose(found, expected * weights(*SHAPE), atol=2e-5)
    assert not found[0, 0, :4].any()
    assert not found[~inside].any()


@pytest.mark.parametrize("tiles", [1, 3])
def test_the_intensity_histogram_is_numpy_s_with_clamped_ends(tiles):
    values, counts = image(*SHAPE), np.zeros((tiles, BINS), np.int64)
    intensity_histogram(SHAPE, counts, np.float32(0.25), np.float32(0.5 / BINS), values)
    expected = np.histogram(np.clip(values, 0.25, 0.75), BINS, (0.25, 0.75))[0]
    np.testing.assert_array_equal(counts.sum(axis=0), expected)

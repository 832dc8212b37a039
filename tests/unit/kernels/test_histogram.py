"""Histograms in integers, and the slope of mutual information."""

import numpy as np
import pytest

from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.device import NO_MASK
from daskreg.kernels.intensity_histogram.cpu import intensity_histogram
from daskreg.similarity.mutual_information.cpu import (
    FIXED_POINT,
    RECENT,
    TOGETHER,
    information_gradient,
    joint_histogram,
    joint_histogram_rows,
)
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


def in_rows(threads, shape, weight, fixed, values, box=None):
    """Counts of the kernel that a CPU uses."""
    tiles, recent = np.zeros((threads, BINS**2), np.int64), np.zeros((threads, BINS**2), np.int32)
    terms, places = np.empty((threads, 8, TOGETHER), np.float32), np.empty((threads, TOGETHER), np.int32)
    joint_histogram_rows(box or (0, *shape), BINS, tiles, recent, terms, places, fixed, weight, values)
    assert not recent.any()
    return tiles.sum(axis=0).reshape(BINS, BINS)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("threads", "shape"), [(1, SHAPE), (3, SHAPE), (2, (3, 5, TOGETHER)), (1, (2, 3, RECENT + 70)), (5, (1, 1, 1))]
)
def test_rows_have_the_integers_of_single_voxels(threads, shape, masked):
    """Out of the domain, and out of range, too; a quarter of the mask is 0."""
    fixed, values, weight = image(*shape), moved(*shape), weights(*shape) if masked else NO_MASK
    values[0, 0, :3] = [np.nan, 1.5, -0.5][: shape[2]]
    counts = np.zeros((1, BINS, BINS), np.int64)
    joint_histogram(shape, counts, fixed, weight, values)
    np.testing.assert_array_equal(in_rows(threads, shape, weight, fixed, values), counts[0])


def test_rows_of_some_planes_are_counted():
    counts = np.zeros((1, BINS, BINS), np.int64)
    joint_histogram((range(1, 3), *SHAPE[1:]), counts, image(*SHAPE), NO_MASK, moved(*SHAPE))
    given = NO_MASK, image(*SHAPE), moved(*SHAPE), (1, 2, *SHAPE[1:])
    np.testing.assert_array_equal(in_rows(2, SHAPE, *given), counts[0])


@pytest.mark.skipif(SIMULATED, reason="nothing overflows in the simulator's integers, in a long time")
def test_counts_of_more_voxels_than_32_bits_hold_are_right():
    """All in one bin."""
    shape = (4, 64, 64)
    same = np.full(shape, 0.5, np.float32)
    counts = np.zeros((1, BINS, BINS), np.int64)
    joint_histogram(shape, counts, same, NO_MASK, same)
    np.testing.assert_array_equal(in_rows(1, shape, NO_MASK, same, same), counts[0])


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

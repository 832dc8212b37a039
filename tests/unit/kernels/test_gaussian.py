"""Smoothing and shrinking against one matrix an axis."""

import numpy as np
import pytest

from daskreg.engine.images import shrink
from daskreg.engine.smoothing import Smoother
from daskreg.kernels.gaussian import gaussian_table, gaussian_weights, radius_of, shrink_table, shrink_z, smooth_z
from tests import reference
from tests.cases import SHAPE, empty, image, vectors

TOLERANCE = 1e-6  # fifteen float32 roundings of numbers below 1
TINY = [SHAPE, (1, 8, 9), (7, 1, 9), (7, 8, 1), (2, 3, 4)]


def smoothed(field, sigma):
    result = np.empty_like(field)
    Smoother(field.shape[1:], sigma).into(field.copy(), np.empty_like(field), result)
    return result


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("shape", TINY)
def test_smoothing_is_the_oracle(shape, sigma):
    field = vectors(*shape)
    np.testing.assert_allclose(smoothed(field, sigma), reference.gaussian_smooth(field.astype(float), sigma), atol=TOLERANCE)


def test_a_constant_stays_what_it_is_at_the_border_too():
    np.testing.assert_allclose(smoothed(np.ones((3, *SHAPE), np.float32), 1.0), 1, atol=TOLERANCE)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 4), (5, 7)])
def test_smoothing_a_block_with_its_halo_gives_the_bits_of_the_whole(sigma, start, stop):
    field, reach, table = vectors(*SHAPE), radius_of(sigma), gaussian_table(SHAPE[0], sigma)
    whole, block = empty(3, *SHAPE), empty(3, stop - start, *SHAPE[1:])
    smooth_z(SHAPE, 0, table, gaussian_weights(sigma), field, whole)
    origin = max(start - reach, 0)
    halo = np.ascontiguousarray(field[:, origin : stop + reach])
    smooth_z(block.shape[1:], start - origin, table[start:stop], gaussian_weights(sigma), halo, block)
    np.testing.assert_array_equal(block, whole[:, start:stop])


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 2), (7, 4, 1), (1, 1, 1)])
def test_shrinking_is_the_oracle(factors):
    small = shrink(image(*SHAPE), factors)
    expected = reference.downsample(image(*SHAPE).astype(float), factors)
    assert small.shape == expected.shape
    np.testing.assert_allclose(small, expected, atol=TOLERANCE)


def test_shrinking_a_block_gives_the_bits_of_the_whole():
    first, table = shrink_table(SHAPE[0], 2)
    whole, plane = empty(4, *SHAPE[1:]), empty(1, *SHAPE[1:])
    shrink_z(whole.shape, 0, first, table, image(*SHAPE), whole)
    for z, start in enumerate(np.maximum(first, 0)):
        block = image(*SHAPE)[start : first[z] + table.shape[1]]
        shrink_z(plane.shape, int(start), first[z : z + 1], table[z : z + 1], block, plane)
        np.testing.assert_array_equal(plane[0], whole[z])

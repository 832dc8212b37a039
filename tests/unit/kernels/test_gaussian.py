"""Smoothing and shrinking against one matrix an axis."""

import numpy as np
import pytest

from daskreg.engine.halo import Block
from daskreg.engine.images import downsample
from daskreg.engine.smoothing import Smoother
from daskreg.grid import Partition, Span
from daskreg.kernels.smoothing.cpu import gaussian_radius
from daskreg.kernels.smoothing.downsampling import downsample_table, downsample_z
from tests import reference
from tests.cases import SHAPE, empty, image, vectors

TOLERANCE = 1e-6  # fifteen float32 roundings of numbers below 1
TINY = [SHAPE, (1, 8, 9), (7, 1, 9), (7, 8, 1), (2, 3, 4)]


def smoothed(field, sigma):
    result, block = np.empty_like(field), Block(field.shape[1:], Partition.of(field.shape[1], 1))
    Smoother(block, sigma).into(block.box(), field.copy(), np.empty_like(field), result)
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
    field, rest = vectors(*SHAPE), (Span(0, start), Span(stop, SHAPE[0]))
    block = Block(SHAPE, Partition(SHAPE[0], (rest[0], Span(start, stop), rest[1])), 1, gaussian_radius(sigma))
    held = np.ascontiguousarray(field[:, block.held.start : block.held.stop])
    part = np.empty_like(held)
    Smoother(block, sigma).into(block.box(), held, np.empty_like(held), part)
    np.testing.assert_array_equal(part[:, block.inner], smoothed(field, sigma)[:, start:stop])


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 2), (7, 4, 1), (1, 1, 1)])
def test_shrinking_is_the_oracle(factors):
    small = downsample(image(*SHAPE), factors)
    expected = reference.downsample(image(*SHAPE).astype(float), factors)
    assert small.shape == expected.shape
    np.testing.assert_allclose(small, expected, atol=TOLERANCE)


def test_shrinking_a_block_gives_the_bits_of_the_whole():
    first, table = downsample_table(SHAPE[0], 2)
    whole, plane = empty(4, *SHAPE[1:]), empty(1, *SHAPE[1:])
    downsample_z(whole.shape, 0, first, table, image(*SHAPE), whole)
    for z, start in enumerate(np.maximum(first, 0)):
        block = image(*SHAPE)[start : first[z] + table.shape[1]]
        downsample_z(plane.shape, int(start), first[z : z + 1], table[z : z + 1], block, plane)
        np.testing.assert_array_equal(plane[0], whole[z])

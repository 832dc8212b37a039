"""Composition and upsampling of displacements."""

import numpy as np
import pytest

from daskreg.kernels.composition.cpu import compose, compose_shortened, upsample
from tests import reference
from tests.cases import SHAPE, empty, vectors

TOLERANCE = 2e-6  # voxels, of displacements of a few voxels
ONE = np.array([1], np.float32)


def composed(d, u, box=SHAPE, first=0, planes=SHAPE[0], scale=ONE):
    result = np.full_like(u, np.nan)
    compose(box, first, planes, scale, d, u, result)
    return result


@pytest.mark.parametrize("scale", [1, 0.25, 0])
def test_compose_is_the_oracle_clamped_to_the_grid(scale):
    u, d = vectors(*SHAPE, size=4), vectors(*SHAPE, size=3, seed=9)
    found = composed(d, u, scale=np.array([scale], np.float32))
    np.testing.assert_allclose(found, reference.compose(u.astype(float), scale * d.astype(float)), atol=TOLERANCE)


def test_vectors_that_are_too_long_are_shortened():
    u, d, found = vectors(*SHAPE, size=4), vectors(*SHAPE, size=3, seed=9), empty(3, *SHAPE)
    compose_shortened(SHAPE, 0, SHAPE[0], np.array([0.25, 0.4], np.float32), d, u, found)
    step = 0.25 * d.astype(float)
    length = np.sqrt((step**2).sum(axis=0))
    assert length.min() < 0.4 < length.max()
    expected = reference.compose(u.astype(float), step * np.minimum(1, 0.4 / length))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (3, 4), (6, 7), (0, 7)])
def test_a_block_with_halo_planes_gives_the_bits_of_the_whole(start, stop):
    """The arrays hold a plane before and two behind, where the grid has them; d, below a voxel, is known in the block alone."""
    u, d = vectors(*SHAPE, size=4), vectors(*SHAPE, seed=9)
    origin, end = max(start - 1, 0), min(stop + 2, SHAPE[0])
    own = slice(start - origin, stop - origin)
    there = np.full((3, end - origin, *SHAPE[1:]), np.nan, np.float32)
    there[:, own] = d[:, start:stop]
    block = composed(there, np.ascontiguousarray(u[:, origin:end]), (range(own.start, own.stop), *SHAPE[1:]), origin)
    np.testing.assert_array_equal(block[:, own], composed(d, u)[:, start:stop])
    block[:, own] = np.nan
    assert np.isnan(block).all()


@pytest.mark.parametrize(("fine", "coarse"), [((1, 1, 1), (2, 2, 2)), ((1, 2, 1), (2, 3, 1)), ((2, 1, 2), (4, 4, 3))])
def test_upsample_is_the_oracle(fine, coarse):
    shape = tuple(-(-n * f // c) for n, f, c in zip(SHAPE, fine, coarse, strict=True))
    u, finer = vectors(*shape, size=3), empty(3, *SHAPE)
    gain = np.asarray(coarse, np.float32) / np.asarray(fine, np.float32)
    upsample(SHAPE, 0, 0, shape[0], np.asarray(fine, np.int32), np.asarray(coarse, np.int32), gain, u, finer)
    expected = reference.upsample_displacement(u.astype(float), coarse, fine, SHAPE)
    np.testing.assert_allclose(finer, expected, atol=2 * TOLERANCE)


def test_upsampling_a_block_gives_the_bits_of_the_whole():
    """A plane at a time, behind one plane of halo, from no more coarse planes than the two around it."""
    u, factors, gain = vectors(4, 4, 5), (np.ones(3, np.int32), np.full(3, 2, np.int32)), np.full(3, 2, np.float32)
    whole, block = empty(3, *SHAPE), empty(3, 2, *SHAPE[1:])
    upsample(SHAPE, 0, 0, 4, *factors, gain, u, whole)
    for z in range(SHAPE[0]):
        origin = max(0, (2 * z - 1) // 4)
        near = np.ascontiguousarray(u[:, origin : (2 * z - 1) // 4 + 2])
        upsample((range(1, 2), *SHAPE[1:]), z - 1, origin, 4, *factors, gain, near, block)
        np.testing.assert_array_equal(block[:, 1], whole[:, z])

"""The plain bodies of local correlation against the oracle, and the marching ones of the CPU against the plain ones."""

import numpy as np
import pytest

from daskreg.kernels.lncc import lncc_factors, lncc_slope, march_factors, march_slope
from daskreg.similarity import NOWHERE
from tests import reference
from tests.cases import EPSILON, FLAT, HALO, SHAPE, TALL, empty, image, moved, vectors, weights

# relative to the largest: windows of a few hundred float32 terms, and differences of near equals in a flat window
TOLERANCE = 2e-4
RADII = [1, 2, 3]
BLOCKS = [(0, 7), (0, 1), (3, 4), (6, 7), (2, 5)]


def plain(radius, lead=0, planes=SHAPE[0], shape=SHAPE, weight=None):
    """Rows and factors by the plain body; the images have the shape, the block starts at plane lead."""
    dkc = empty(3, planes, *shape[1:])
    weight = weights(*shape) if weight is None else weight
    return lncc_factors((planes, *shape[1:]), lead, radius, EPSILON, FLAT, image(*shape), weight, moved(*shape), dkc), dkc


def marched(radius, lead=0, planes=SHAPE[0], shape=SHAPE, weight=None):
    """The same by the marching one."""
    rows, dkc = empty(2, planes, shape[1]), empty(3, planes, *shape[1:])
    weight = weights(*shape) if weight is None else weight
    ones = (np.float32(1),) * (2 * radius + 1)
    march_factors((planes, *shape[1:]), rows, lead, ones, EPSILON, FLAT, image(*shape), weight, moved(*shape), dkc)
    return rows, dkc


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def oracle(radius):
    """w cc, w, w D, w K, w (K mu_M - D mu_F) in float64, 0 in windows where either variance is below FLAT."""
    values = moved(*SHAPE)
    w = np.where(np.isfinite(values), weights(*SHAPE), 0).astype(float)
    values = np.nan_to_num(values).astype(float)
    cc, d, k, mean_f, mean_m = reference._lncc_terms(image(*SHAPE).astype(float), values, w, radius, float(EPSILON))
    n = np.maximum(reference.box_sum(w, radius), 1e-30)
    spread_f = reference.box_sum(w * image(*SHAPE).astype(float) ** 2, radius) / n - mean_f**2
    spread_m = reference.box_sum(w * values**2, radius) / n - mean_m**2
    lively = np.minimum(spread_f, spread_m) >= FLAT
    assert 0.05 < lively.mean() < 0.95
    return w * cc * lively, w, np.stack([d, k, k * mean_m - d * mean_f]) * lively


@pytest.mark.parametrize("radius", RADII)
def test_the_plain_factors_are_the_oracle(radius):
    (correlation, weight, factors), (rows, dkc) = oracle(radius), plain(radius)
    assert_close(rows, np.stack([correlation.sum(axis=2), weight.sum(axis=2)]))
    assert_close(dkc, factors)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("weight", [weights(*TALL), NOWHERE], ids=["masked", "unmasked"])
def test_marching_gives_the_plain_factors(radius, weight):
    for found, expected in zip(marched(radius, HALO, 7, TALL, weight), plain(radius, HALO, 7, TALL, weight), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1), (2, 3, 2)])
def test_marching_through_thin_blocks_gives_the_plain_factors(shape):
    for found, expected in zip(marched(2, 0, shape[0], shape), plain(2, 0, shape[0], shape), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize(("start", "stop"), BLOCKS)
def test_a_block_of_marched_factors_with_its_halo_has_the_bits_of_the_whole(start, stop):
    rows, dkc = marched(2)
    origin, end = max(start - 2, 0), min(stop + 2, SHAPE[0])
    still, mask, values = (np.ascontiguousarray(a[origin:end]) for a in (image(*SHAPE), weights(*SHAPE), moved(*SHAPE)))
    some, part = empty(2, stop - start, 8), empty(3, stop - start, 8, 9)
    march_factors(part.shape[1:], some, start - origin, (np.float32(1),) * 5, EPSILON, FLAT, still, mask, values, part)
    np.testing.assert_array_equal(some, rows[:, start:stop])
    np.testing.assert_array_equal(part, dkc[:, start:stop])


def slopes(radius, lead, shape, dkc, weight):
    """The slope by the plain body and by the marching one."""
    both = []
    for marching in (False, True):
        values = moved(*shape)
        if marching:
            march_slope(shape, lead, (np.float32(1),) * (2 * radius + 1), dkc, image(*shape), weight, values)
        else:
            lncc_slope(shape, lead, radius, dkc, image(*shape), weight, values)
        both.append(values)
    return both


@pytest.mark.parametrize("radius", [0, *RADII])
@pytest.mark.parametrize("weight", [weights(*SHAPE), NOWHERE], ids=["masked", "unmasked"])
def test_marching_gives_the_plain_slope(radius, weight):
    expected, found = slopes(radius, HALO, SHAPE, vectors(*TALL), weight)
    assert_close(found, expected)
    assert not found[np.isnan(moved(*SHAPE))].any()


@pytest.mark.parametrize("shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1)])
def test_marching_through_thin_blocks_gives_the_plain_slope(shape):
    expected, found = slopes(2, 0, shape, vectors(*shape), weights(*shape))
    assert_close(found, expected)


@pytest.mark.parametrize(("start", "stop"), BLOCKS)
def test_a_block_of_the_marched_slope_with_its_halo_has_the_bits_of_the_whole(start, stop):
    whole = slopes(2, 0, SHAPE, vectors(*SHAPE), weights(*SHAPE))[1]
    origin, end = max(start - 2, 0), min(stop + 2, SHAPE[0])
    dkc = np.ascontiguousarray(vectors(*SHAPE)[:, origin:end])
    still, mask, values = (np.ascontiguousarray(a[start:stop]) for a in (image(*SHAPE), weights(*SHAPE), moved(*SHAPE)))
    march_slope(still.shape, start - origin, (np.float32(1),) * 5, dkc, still, mask, values)
    np.testing.assert_array_equal(values, whole[start:stop])

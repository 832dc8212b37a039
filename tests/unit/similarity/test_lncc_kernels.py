"""The plain bodies of local correlation against the oracle, and the row kernels of the CPU against the plain ones."""

import numpy as np
import pytest

from daskreg.kernels.compiler.launch import box
from daskreg.kernels.device import NO_MASK
from daskreg.similarity.lncc.cpu import factor_rows, gradient_rows, lncc_factors, lncc_gradient
from tests import reference
from tests.cases import EPSILON, HALO, INNER, SHAPE, TALL, VARIANCES, empty, image, moved, vectors, weights

# relative to the largest: windows of a few hundred float32 terms, and differences of near equals in a flat window
TOLERANCE = 2e-4
RADII = [1, 2, 3]
BLOCKS = [(0, 7), (0, 1), (3, 4), (6, 7), (2, 5)]


def plain(radius, inner=SHAPE, shape=SHAPE, weight=None):
    """Rows and factors by the plain body of the planes ``inner`` of images of the shape."""
    dkc = empty(3, *shape)
    weight = weights(*shape) if weight is None else weight
    return lncc_factors(inner, radius, EPSILON, VARIANCES, image(*shape), weight, moved(*shape), dkc), dkc


def by_row_kernel(radius, inner=SHAPE, shape=SHAPE, weight=None):
    """The same by the row kernel."""
    n = box(inner)
    rows, dkc = empty(2, *n[1:3]), empty(3, *shape)
    weight = weights(*shape) if weight is None else weight
    factor_rows(n, rows, ones(radius), EPSILON, VARIANCES, image(*shape), weight, moved(*shape), dkc)
    return rows, dkc


def ones(radius):
    """As many as a window has voxels along an axis."""
    return (np.float32(1),) * (2 * radius + 1)


def cut(start, stop):
    """The planes that a block and its halo of two hold, and the box of the block in them."""
    origin, end = max(start - 2, 0), min(stop + 2, SHAPE[0])
    return slice(origin, end), (range(start - origin, stop - origin), *SHAPE[1:])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def oracle(radius):
    """w cc, w, w D, w K, w (K mu_M - D mu_F) in float64: 0 in windows where either variance is below the least."""
    values = moved(*SHAPE)
    w = np.where(np.isfinite(values), weights(*SHAPE), 0).astype(float)
    values = np.nan_to_num(values).astype(float)
    cc, d, k, mean_f, mean_m = reference._lncc_terms(image(*SHAPE).astype(float), values, w, radius, float(EPSILON))
    n = np.maximum(reference.box_sum(w, radius), 1e-30)
    spread_f = reference.box_sum(w * image(*SHAPE).astype(float) ** 2, radius) / n - mean_f**2
    spread_m = reference.box_sum(w * values**2, radius) / n - mean_m**2
    least, noise = VARIANCES
    lively = np.minimum(spread_f, spread_m) >= least
    assert 0.05 < lively.mean() < 0.95
    share = lively * spread_f / (spread_f + noise)
    return w * cc * share, w, np.stack([d, k, k * mean_m - d * mean_f]) * share


@pytest.mark.parametrize("radius", RADII)
def test_the_plain_factors_are_the_oracle(radius):
    (correlation, weight, factors), (rows, dkc) = oracle(radius), plain(radius)
    assert_close(rows, np.stack([correlation.sum(axis=2), weight.sum(axis=2)]))
    assert_close(dkc, factors)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("weight", [weights(*TALL), NO_MASK], ids=["masked", "unmasked"])
def test_row_kernels_give_the_plain_factors(radius, weight):
    for found, expected in zip(by_row_kernel(radius, INNER, TALL, weight), plain(radius, INNER, TALL, weight), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1), (2, 3, 2)])
def test_row_kernels_of_thin_blocks_give_the_plain_factors(shape):
    for found, expected in zip(by_row_kernel(2, shape, shape), plain(2, shape, shape), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize(("start", "stop"), BLOCKS)
def test_factors_of_a_block_with_its_halo_has_the_bits_of_the_whole(start, stop):
    rows, dkc = by_row_kernel(2)
    held, inner = cut(start, stop)
    still, mask, values = (np.ascontiguousarray(a[held]) for a in (image(*SHAPE), weights(*SHAPE), moved(*SHAPE)))
    some, part = empty(2, stop - start, 8), empty(3, *still.shape)
    factor_rows(box(inner), some, ones(2), EPSILON, VARIANCES, still, mask, values, part)
    np.testing.assert_array_equal(some, rows[:, start:stop])
    np.testing.assert_array_equal(part[:, inner[0].start : inner[0].stop], dkc[:, start:stop])


def slopes(radius, inner, shape, dkc, weight):
    """The slope by the plain body and by the row kernel."""
    both = []
    for by_rows in (False, True):
        values = moved(*shape)
        if by_rows:
            gradient_rows(box(inner), ones(radius), dkc, image(*shape), weight, values)
        else:
            lncc_gradient(inner, radius, dkc, image(*shape), weight, values)
        both.append(values)
    return both


@pytest.mark.parametrize("radius", [0, *RADII])
@pytest.mark.parametrize("weight", [weights(*TALL), NO_MASK], ids=["masked", "unmasked"])
def test_row_kernels_give_the_plain_gradient(radius, weight):
    expected, found = (v[HALO:-HALO] for v in slopes(radius, INNER, TALL, vectors(*TALL), weight))
    assert_close(found, expected)
    assert not found[np.isnan(moved(*TALL)[HALO:-HALO])].any()


@pytest.mark.parametrize("shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1)])
def test_row_kernels_of_thin_blocks_give_the_plain_gradient(shape):
    expected, found = slopes(2, shape, shape, vectors(*shape), weights(*shape))
    assert_close(found, expected)


@pytest.mark.parametrize(("start", "stop"), BLOCKS)
def test_the_gradient_of_a_block_with_its_halo_has_the_bits_of_the_whole(start, stop):
    whole = slopes(2, SHAPE, SHAPE, vectors(*SHAPE), weights(*SHAPE))[1]
    held, inner = cut(start, stop)
    dkc = np.ascontiguousarray(vectors(*SHAPE)[:, held])
    still, mask, values = (np.ascontiguousarray(a[held]) for a in (image(*SHAPE), weights(*SHAPE), moved(*SHAPE)))
    gradient_rows(box(inner), ones(2), dkc, still, mask, values)
    np.testing.assert_array_equal(values[inner[0].start : inner[0].stop], whole[start:stop])

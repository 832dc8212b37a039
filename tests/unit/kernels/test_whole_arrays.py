"""The products with matrices that stand for SciPy's filters on a GPU are what SciPy computes."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter

from daskreg.kernels.smoothing.whole_arrays import band_matrix, box_around, filtered, gaussian, gaussian_matrix

SHAPE = (7, 20, 13)


@pytest.mark.parametrize("sigma", [(0.0, 1.3, 4.0), (0.4, 0.0, 0.7), (9.0, 0.2, 2.0)])
def test_a_gaussian_is_that_of_scipy(sigma):
    channels = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    expected = np.stack([gaussian_filter(c, sigma, mode="constant") for c in channels])
    np.testing.assert_array_equal(gaussian(channels, np.array(sigma)), expected)
    found = filtered(channels, [gaussian_matrix(n, s) for n, s in zip(SHAPE, sigma, strict=True)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("reach", [(0, 1, 3), (2, 0, 20), (1, 1, 1)])
def test_what_is_around_a_region_is_its_maximum_in_a_box(reach):
    region = np.random.default_rng(1).random(SHAPE) > 0.97
    expected = maximum_filter(region, [2 * r + 1 for r in reach])
    assert 0 < region.sum() < expected.sum()
    np.testing.assert_array_equal(box_around(region, np.array(reach)), expected)
    matrices = [band_matrix(n, r) for n, r in zip(SHAPE, reach, strict=True)]
    np.testing.assert_array_equal(filtered(region.astype(np.float32), matrices) > 0.5, expected)

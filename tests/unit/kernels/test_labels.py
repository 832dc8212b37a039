"""Labels go where most of their weight is."""

import numpy as np

from daskreg.kernels.sampling.labels import sample_label
from daskreg.transforms.linear import linear_part, to_fixed_point
from tests import reference
from tests.cases import MATRIX, OTHER, SHAPE, image, vectors


def test_the_label_with_most_weight_wins():
    labels, u = (image(*OTHER) * 4).astype(np.uint16), vectors(*SHAPE, size=3)
    moved = np.zeros(SHAPE, np.uint16)
    sample_label(SHAPE, 0, to_fixed_point(MATRIX), linear_part(MATRIX), u, labels, moved)
    p = reference.sampling_points(SHAPE, MATRIX[:3], None, u.astype(float))
    share = np.stack([reference.trilinear((labels == k).astype(float), p)[0] for k in range(4)])
    extent = (np.abs(p - (np.reshape(OTHER, (3, 1, 1, 1)) - 1) / 2) <= np.reshape(OTHER, (3, 1, 1, 1)) / 2).all(axis=0)
    share[0, ~extent] = 2  # beyond the extent of the voxels it is left at 0
    first, second = np.sort(share, axis=0)[[-1, -2]]
    clear = first - second > 1e-5
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(moved[clear], share.argmax(axis=0)[clear])

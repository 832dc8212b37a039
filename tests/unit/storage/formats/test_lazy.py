"""Voxels that are read box by box are those of the array."""

import numpy as np
import pytest

from daskreg.storage.formats.lazy import BoxVoxels, lazy_voxels, slab_chunks

WHOLE = np.arange(5 * 6 * 7).reshape(5, 6, 7)
PARTS = [slice(None), slice(1, 4), slice(0, 0), slice(5, 0, -2), slice(-3, None), slice(None, None, 3), 2, -1]


def read(box):
    assert all(0 <= s.start <= s.stop <= n for s, n in zip(box, WHOLE.shape))
    return WHOLE[box]


@pytest.mark.parametrize("z", PARTS)
@pytest.mark.parametrize("x", PARTS)
def test_slices_and_integers_are_those_of_the_array(z, x):
    voxels = BoxVoxels(read, WHOLE.shape, WHOLE.dtype)
    for index in [z, (z,), (z, slice(None), x), (z, 3, x), (slice(1, 5, 2), x)]:
        np.testing.assert_array_equal(voxels[index], WHOLE[index])


@pytest.mark.parametrize("index", [np.s_[:], np.s_[::-1, 2], np.s_[3, ::-2, 1:], np.s_[..., -1]])
def test_a_lazy_array_computes_the_same_voxels(index):
    lazy = lazy_voxels(read, WHOLE.shape, WHOLE.dtype, (2, 6, 7))
    np.testing.assert_array_equal(lazy[index].compute(scheduler="synchronous"), WHOLE[index])


def test_chunks_are_whole_planes_and_single_entries_of_leading_axes(monkeypatch):
    monkeypatch.setattr("daskreg.storage.formats.lazy.SLAB_BYTES", 1000)
    assert slab_chunks((3, 50, 10, 10), 2) == (1, 5, 10, 10)
    assert slab_chunks((50, 10, 10, 3), 4, axis=-4) == (1, 10, 10, 3)
    assert slab_chunks((4, 5, 5), 2) == (4, 5, 5)

"""Boxes of voxels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daskreg.grid import Region

CORNERS = st.tuples(*[st.integers(-4, 9)] * 3)
REGIONS = st.builds(Region, CORNERS, CORNERS)
BOXES = st.builds(lambda start, shape: Region.of(start, np.add(start, shape)), CORNERS, st.tuples(*[st.integers(1, 9)] * 3))


def voxels(region):
    return set(np.ndindex(region.shape)) if region.start == (0, 0, 0) else {
        tuple(np.add(k, region.start)) for k in np.ndindex(region.shape)
    }  # fmt: skip


@given(REGIONS, REGIONS)
def test_an_intersection_holds_the_voxels_of_both(a, b):
    assert voxels(a & b) == voxels(a) & voxels(b)
    assert (a & b).size == len(voxels(a & b))


@given(BOXES, st.integers(1, 5))
def test_a_split_covers_a_region_once_with_boxes_of_at_most_the_edge(region, edge):
    parts = list(region.split(edge))
    found = [v for part in parts for v in voxels(part)]
    assert sorted(found) == sorted(voxels(region))
    assert all(max(part.shape) <= edge for part in parts)


@given(BOXES, CORNERS)
def test_a_shift_moves_every_voxel(region, offset):
    assert voxels(region.shift(offset)) == {tuple(np.add(v, offset)) for v in voxels(region)}


@given(BOXES, st.integers(0, 3))
def test_within_indexes_an_array_of_a_larger_region(region, halo):
    outer = region.grow(halo)
    numbers = np.arange(outer.size).reshape(outer.shape)
    inner = numbers[region.within(outer)]
    assert inner.shape == region.shape
    assert inner.flat[0] == np.ravel_multi_index((halo,) * 3, outer.shape)


def test_array_integers_become_python_integers():
    region = Region.of(np.array([0, 1, 2]), np.array([3.0, 4.0, 5.0]))
    assert region == Region((0, 1, 2), (3, 4, 5))
    assert {type(v) for v in (*region.start, *region.stop)} == {int}

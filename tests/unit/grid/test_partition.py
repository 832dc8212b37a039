"""Planes of a grid and the ranks that own them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskreg.grid import Grid, Partition, Span, cut_orders

SPANS = st.builds(Span, st.integers(-5, 12), st.integers(-5, 12))
PARTITIONS = st.builds(Partition.of, st.integers(1, 300), st.integers(1, 40), st.integers(1, 12))


def planes(span):
    return set(range(span.start, span.stop))


@given(SPANS, SPANS)
def test_an_intersection_holds_the_planes_of_both_spans(a, b):
    assert planes(a & b) == planes(a) & planes(b)
    assert len(a & b) == len(planes(a & b))


@given(SPANS, st.integers(0, 4))
def test_a_span_grows_at_both_ends_unless_it_is_empty(span, halo):
    wanted = {z + k for z in planes(span) for k in range(-halo, halo + 1)}
    assert planes(span.grow(halo)) == wanted


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9))
def test_within_indexes_an_array_of_the_outer_planes(start, length, more):
    inner = Span(start, start + length)
    outer = Span(0, start + length + more)
    assert list(np.arange(outer.start, outer.stop)[inner.within(outer)]) == sorted(planes(inner))


@given(PARTITIONS)
def test_slabs_cover_all_planes_once_and_in_order(partition):
    assert [z for slab in partition.slabs for z in range(slab.start, slab.stop)] == list(range(partition.planes))


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 12))
def test_slabs_are_nearly_equal_and_at_least_of_the_minimum_thickness(n, ranks, fewest):
    lengths = Partition.of(n, ranks, fewest).lengths
    working = [k for k in lengths if k]
    assert len(lengths) == ranks
    assert list(lengths) == working + [0] * (ranks - len(working))
    assert max(working) - min(working) <= 1
    assert len(working) == 1 or min(working) >= fewest
    assert len(working) == ranks or (len(working) + 1) * fewest > n


@given(PARTITIONS, st.integers(0, 400))
def test_a_halo_is_clipped_to_the_grid(partition, halo):
    for rank, slab in enumerate(partition.slabs):
        assert planes(partition.around(rank, halo)) == planes(slab.grow(halo)) & set(range(partition.planes))


def permuted(shape, order):
    """A grid whose axes are those of the world in another order."""
    direction = np.eye(3)[:, list(order)]
    return Grid(shape, direction=tuple(map(tuple, direction)))


@pytest.mark.parametrize(
    ("shape", "order"),
    [((20, 40, 40), (0, 1, 2)), ((20, 41, 40), (1, 0, 2)), ((20, 41, 50), (2, 0, 1)), ((20, 41, 41), (1, 0, 2))],
)
def test_the_cut_is_along_z_unless_an_axis_is_more_than_twice_as_long(shape, order):
    assert cut_orders(Grid(shape), Grid((9, 9, 9))) == (order, order)


@pytest.mark.parametrize(("order", "first"), [((0, 1, 2), 0), ((1, 0, 2), 1), ((2, 0, 1), 1), ((1, 2, 0), 2)])
def test_the_moving_image_is_cut_along_the_axis_closest_to_the_fixed_cut(order, first):
    assert cut_orders(Grid((30, 30, 30)), permuted((30, 30, 30), order))[1][0] == first

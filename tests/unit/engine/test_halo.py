"""Exchanged planes: what arrives equals the planes of the whole array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg.engine.halo import Block, Movement, gather_planes, wait_all
from daskreg.grid import Partition, Span
from tests.unit.engine.spread import cut, on_ranks

PLANE = (2, 3)
FEW = settings(max_examples=40, deadline=None)


def numbered(*shape):
    """Every voxel has its own number."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@st.composite
def tables(draw):
    """Planes, who owns them, and spans that the ranks want: any, empty ones, the same ones, all of them."""
    planes, ranks = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    ends = st.integers(0, planes)
    owned = cut(planes, *draw(st.lists(ends, min_size=ranks - 1, max_size=ranks - 1))).slabs
    wanted = [Span(min(a, b), max(a, b)) for a, b in draw(st.lists(st.tuples(ends, ends), min_size=ranks, max_size=ranks))]
    return planes, owned, wanted


@FEW
@given(tables(), st.sampled_from([(), (3,)]))
def test_wanted_planes_arrive_from_any_owner(table, components):
    planes, owned, wanted = table
    everything = numbered(*components, planes, *PLANE)

    def rank(comm):
        mine = owned[comm.rank]
        return gather_planes(comm, owned, wanted, everything[..., mine.start : mine.stop, :, :].copy(), mine.start, "levels")

    for span, came in zip(wanted, on_ranks(len(owned), rank), strict=True):
        np.testing.assert_array_equal(came, everything[..., span.start : span.stop, :, :])


@FEW
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 15))
def test_a_halo_of_any_width_is_filled_and_nothing_else_is_changed(planes, ranks, halo):
    """Wider than a block too; a scalar and a vector field in one message, in arrays that have room for more than is asked for."""
    partition = Partition.of(planes, ranks, 1)
    scalar, vector = numbered(planes, *PLANE), numbered(3, planes, *PLANE)

    def rank(comm):
        block = Block((planes, *PLANE), partition, comm.rank, halo + 1)
        fields = block.scalar(), block.vector()
        for field, whole in zip(fields, (scalar, vector), strict=True):
            field[...] = np.nan
            field[..., block.inner, :, :] = whole[..., block.own.start : block.own.stop, :, :]
        wait_all(Movement(comm, partition.slabs, block.around(halo)).start(*((f, block.first) for f in fields)))
        return block, fields, comm.traffic

    sent = 0
    for number, (block, fields, traffic) in enumerate(on_ranks(ranks, rank)):
        around = partition.around(number, halo)
        for field, whole in zip(fields, (scalar, vector), strict=True):
            there = field[..., around.within(block.held), :, :]
            np.testing.assert_array_equal(there, whole[..., around.start : around.stop, :, :])
            assert np.isfinite(field).sum() == there.size
        sent += traffic["halo"]
    lacking = sum(len(partition.around(r, halo)) - len(partition[r]) for r in range(ranks))
    assert sent == lacking * 4 * numbered(*PLANE).nbytes


def test_a_rank_that_wants_nothing_still_sends():
    owned, wanted = [Span(0, 2), Span(2, 4)], [Span(0, 0), Span(0, 4)]

    def rank(comm):
        movement = Movement(comm, owned, wanted)
        return movement.outgoing, movement.incoming

    assert on_ranks(2, rank) == [([(1, Span(0, 2))], []), ([], [(0, Span(0, 2))])]


@pytest.mark.parametrize("rank", range(3))
def test_a_block_numbers_its_planes_globally_and_locally(rank):
    block = Block((10, 4, 5), Partition.of(10, 3, 1), rank, 2)
    numbers = np.arange(10)[block.held.start : block.held.stop]
    own = list(range(block.own.start, block.own.stop))
    assert list(numbers[block.inner]) == own
    assert [numbers[z] for z in block.box()[0]] == own
    assert numbers[0] == block.first
    assert block.scalar().shape == (len(numbers), 4, 5)
    assert block.vector().shape == (3, len(numbers), 4, 5)
    assert len(block.box(1)[0]) == len(own) + (2 if rank == 1 else 1)

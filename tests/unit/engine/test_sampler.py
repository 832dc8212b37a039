"""The residency of the moving image does not change what is sampled, and only planes in reach are sent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg.comm import SingleRank
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.reach import Reach, ReachMonitor, SamplingMap, affine_reach
from daskreg.engine.residency import make_sampler
from daskreg.engine.sampler import REACH_MARGIN, Resident
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.compiler.launch import box
from daskreg.planning import RESIDENCIES
from daskreg.transforms.linear import index_gradient_by_plane, linear_part, to_fixed_point
from tests.cases import image, vectors, weights
from tests.phantoms import rotation
from tests.unit.engine.spread import on_ranks, piece

FIXED, MOVING = (11, 6, 7), (14, 7, 6)
ONE = (1, 1, 1)
PLANE = 4 * MOVING[1] * MOVING[2]  # bytes
HALO = 1
FEW = settings(max_examples=40, deadline=None)


def turned(*degrees, shift=(0, 0, 0)):
    """Index map: a rotation about both middles, and a shift."""
    m = np.eye(4)
    m[:3, :3] = rotation(degrees)
    m[:3, 3] = (np.array(MOVING) - 1) / 2 - m[:3, :3] @ ((np.array(FIXED) - 1) / 2) + shift
    return m


def along_z(scale, shift):
    """Plane z of the fixed image onto plane ``scale z + shift``."""
    m = np.eye(4)
    m[0, 0], m[0, 3] = scale, shift
    return m


def bump(size):
    """No displacement but in the middle of the grid, where it is ``size`` voxels along z."""
    u = np.zeros((3, *FIXED), np.float32)
    u[0, 5, 3, 3] = size
    return u


def mapping_of(matrix, first=0):
    return SamplingMap(first, to_fixed_point(matrix), linear_part(matrix))


def read(sampler, n, mapping, u, slope):
    """Values, weights, dC/du and the linear sums of the planes ``n``."""
    shape = slope.shape
    moved, weight, g, linear = np.zeros(shape, np.float32), np.zeros(shape, np.float32), *np.zeros((2, 3, *shape), np.float32)
    sampler.sample(n, mapping, u, moved, weight if sampler.masked else None, g if sampler.stores_gradient else None)
    slope = np.where(np.isfinite(moved), slope, 0).astype(np.float32)
    sampler.pull_back(n, mapping, u, slope, g)
    rest = np.zeros(shape, np.float32)
    sampler.sample(n, mapping, None, rest, None, linear if sampler.stores_gradient else None)
    slope[np.isnan(rest)] = 0
    sums = index_gradient_by_plane(sampler.sums(n, mapping, slope, linear), mapping.first + box(n)[0])
    planes = slice(box(n)[0], box(n)[0] + box(n)[1])
    weight[np.isnan(moved)] = 0  # of no meaning there
    return moved[planes], weight[planes], g[:, planes], rest[planes], sums


def at_once(matrix, u, mask, moving=MOVING):
    """All of it on one rank that holds the whole image."""
    sampler, fixed = Resident(image(*moving), mask, moving[0]), u.shape[1:]
    return read(sampler, fixed, mapping_of(matrix), u, image(*fixed, seed=5) - np.float32(0.5))


def seen(block, mapping, u, comm):
    """What is read with the displacement u and without one."""
    monitor = ReachMonitor(block, mapping, block.partition, 0, 0.0, comm)
    return monitor.combine(np.maximum(monitor.measure(u), 0))


def spread(ranks, residency, matrix, u, mask, moving=MOVING, inner=None):
    """The same on ranks, planes joined; ``inner``: reported how many planes of each rank's block a ring finds in the own
    shard.
    """
    fixed = u.shape[1:]
    blocks, shards, slope = Partition.of(fixed[0], ranks, 1), Partition.of(moving[0], ranks, 1), image(*fixed, seed=5)

    def rank(comm):
        block = Block(fixed, blocks, comm.rank, HALO)
        sampler = make_sampler(residency, piece(comm, image(*moving), Grid(moving), shards, 0, mask), ONE, shards, comm)
        held = slice(block.held.start, block.held.stop)
        mapping, mine = mapping_of(matrix, block.first), np.ascontiguousarray(u[:, held])
        sampler.prepare(seen(block, mapping, mine, comm))
        if inner is not None:
            inner[comm.rank] = len(sampler.schedule.inner)
        return read(sampler, block.box(), mapping, mine, slope[held] - np.float32(0.5))

    parts = list(zip(*on_ranks(ranks, rank), strict=True))
    axes = (0, 0, 1, 0, 1)
    return [np.concatenate(part, axis=axis) for part, axis in zip(parts, axes, strict=True)]


def assert_same_bits(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.tobytes() == b.tobytes()


MATRICES = {
    "identity": np.eye(4),
    "rotated a little": turned(6, -11, 17, shift=(0.3, -0.4, 0.2)),
    "upside down, so that far shards are needed": turned(0, 172, 9),
    "on its side, so that every shard is": turned(3, 91, 20),
    "partly out of the image": turned(10, 20, 5, shift=(8, 1, -2)),
    "out of the image": turned(0, 0, 0, shift=(60, 0, 0)),
}


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("field", ["random", "bump"])
def test_every_residency_gives_the_bits_of_one_whole_image(residency, name, field):
    u = vectors(*FIXED, size=3) if field == "random" else bump(7)
    mask = weights(*MOVING)
    assert_same_bits(spread(4, residency, MATRICES[name], u, mask), at_once(MATRICES[name], u, mask))


@FEW
@given(
    ranks=st.integers(2, 16), residency=st.sampled_from(RESIDENCIES), seed=st.integers(0, 99), size=st.sampled_from([0.3, 2, 9]),
    degrees=st.tuples(*[st.integers(-180, 180)] * 3), masked=st.booleans(),
)  # fmt: skip
def test_random_maps_and_displacements_give_the_bits_of_one_whole_image(ranks, residency, seed, size, degrees, masked):
    """Ranks without planes too."""
    u, mask, matrix = vectors(*FIXED, size=size, seed=seed), weights(*MOVING) if masked else None, turned(*degrees)
    assert_same_bits(spread(ranks, residency, matrix, u, mask), at_once(matrix, u, mask))


def lying(fixed, moving, drift=0.0, degrees=0.0):
    """Index map of a fixed grid onto a moving one, turned about both middles and the x axis, and shifted along z."""
    m = np.eye(4)
    m[:3, :3] = rotation((0, 0, degrees)) @ np.diag([moving[0] / fixed[0], 1, 1])
    m[:3, 3] = (np.array(moving) - 1) / 2 - m[:3, :3] @ ((np.array(fixed) - 1) / 2) + (drift, 0, 0)
    return m


# fixed planes and rows, moving planes, their placement, ranks, and of each rank whether any plane reads its shard alone
SPLITS = {
    "alike": (60, 5, 60, {}, 3, [True] * 3),
    "shifted by half a block": (60, 5, 60, {"drift": 12.0}, 3, [True] * 3),
    "shifted by more than a block": (60, 5, 60, {"drift": -31.0}, 3, [True, True, False]),  # rank 1: out of the image
    "turned by 45 degrees": (24, 24, 24, {"degrees": 45.0}, 3, [False] * 3),
    "upside down": (60, 5, 60, {"degrees": 180.0}, 3, [False, True, False]),
    "onto a much finer grid": (60, 5, 200, {}, 3, [True] * 3),
    "onto a much coarser grid": (120, 5, 45, {}, 3, [True] * 3),
    "onto fewer planes than ranks": (60, 5, 3, {}, 5, [False] * 5),
    "a plane or two a rank": (60, 5, 60, {}, 40, [False] * 40),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SPLITS)
def test_planes_that_read_only_their_own_shard_give_the_same_bits(name, masked):
    planes, rows, there, placement, ranks, expected = SPLITS[name]
    fixed, moving, inner = (planes, rows, 6), (there, rows, 5), [0] * ranks
    u, mask, matrix = vectors(*fixed, size=0.9), weights(*moving) if masked else None, lying(fixed, moving, **placement)
    assert_same_bits(spread(ranks, "ring", matrix, u, mask, moving, inner), at_once(matrix, u, mask, moving))
    assert [n > 0 for n in inner] == expected, inner


def travelled(residency, matrix, u, looks=1, ranks=3):
    """Bytes that each rank sent for looks at the moving image."""
    blocks, shards = Partition.of(FIXED[0], ranks, 1), Partition.of(MOVING[0], ranks, 1)

    def rank(comm):
        block = Block(FIXED, blocks, comm.rank)
        mapping, mine = mapping_of(matrix, block.first), np.ascontiguousarray(u[:, block.own.start : block.own.stop])
        sampler = make_sampler(residency, piece(comm, image(*MOVING), Grid(MOVING), shards), ONE, shards, comm)
        before = comm.traffic.copy()
        for _ in range(looks):
            sampler.prepare(seen(block, mapping, mine, comm))
            sampler.sample(block.box(), mapping, mine, block.scalar(), None, None)
        sent = comm.traffic - before
        return sent["ring"] + sent["window"]

    return on_ranks(ranks, rank)


@pytest.mark.parametrize(("residency", "silent"), [("ring", [2]), ("window", [2])])
def test_only_shards_that_a_rank_reaches_are_sent(residency, silent):
    """All points fall between planes 1 and 2, which are rank 0's; rank 1 has the margin."""
    sent = travelled(residency, along_z(0.05, 1.2), np.zeros((3, *FIXED), np.float32))
    assert [rank for rank, n in enumerate(sent) if n == 0] == silent


def test_only_the_planes_in_reach_of_a_shard_are_sent():
    """Fixed slabs meet at planes 3 and 7, moving ones at 4 and 9; each reads a plane before its own and two behind."""
    sent = travelled("ring", np.eye(4), np.zeros((3, *FIXED), np.float32))
    needs = [need.grow(REACH_MARGIN) for need in (Span(-1, 5), Span(2, 9), Span(6, 13))]
    shards = Partition.of(MOVING[0], 3, 1).slabs
    assert sent == [sum(len(shard & need) for r, need in enumerate(needs) if r != k) * PLANE for k, shard in enumerate(shards)]


@pytest.mark.parametrize("residency", ["window", "ring"])
def test_a_bump_in_the_middle_of_a_block_fetches_the_planes_it_reaches(residency):
    """The block's corners and faces do not show it."""
    still, far = (travelled(residency, along_z(1, 0), bump(size)) for size in (0, 8))
    assert far[2] > still[2]


def test_a_ring_keeps_its_schedule_while_the_reach_stays_inside():
    def rank(comm):
        shards = Partition.of(60, 3, 1)
        sampler = make_sampler("ring", piece(comm, image(60, *MOVING[1:]), Grid((60, *MOVING[1:])), shards), ONE, shards, comm)
        reaches = [Reach.of_slabs(shards, [s.grow(k) for s in shards.slabs]) for k in (2, 2 + REACH_MARGIN, 3 + REACH_MARGIN, 1)]
        return [(sampler.prepare(reach), sampler.schedule) for reach in reaches]

    for made in on_ranks(3, rank):
        assert [changed for changed, _ in made] == [True, False, True, False]
        assert made[0][1] is made[1][1]


def test_a_window_is_fetched_once_while_the_reach_stays_inside():
    one, many = (travelled("window", turned(6, -11, 17), vectors(*FIXED, size=1), looks) for looks in (1, 5))
    assert one == many
    assert sum(one) > 0


@pytest.mark.parametrize("shift", [1, 3, 6, -6, 40])
def test_a_window_moves_when_the_reach_leaves_it_and_fetches_no_plane_twice(shift):
    """From planes 3 to 5 to others: what both have is copied, the rest comes from its owners, and all of it is right."""
    moving, shards = image(60, *MOVING[1:]), Partition.of(60, 4, 1)
    first, then = [Span(30, 33)] * 4, [Span(30 + shift, 33 + shift)] * 4

    def window(need, before):
        inside = need & Span(0, 60)
        return before if inside & before == inside else inside.grow(REACH_MARGIN) & Span(0, 60)

    def rank(comm):
        sampler = make_sampler("window", piece(comm, moving, Grid(moving.shape), shards), ONE, shards, comm)
        sampler.prepare(Reach.of_slabs(shards, first))
        before, old = comm.traffic["window"], Span(sampler.origin, sampler.origin + len(sampler.image))
        sampler.prepare(Reach.of_slabs(shards, then))
        new = Span(sampler.origin, sampler.origin + len(sampler.image))
        np.testing.assert_array_equal(sampler.image, moving[new.start : new.stop])
        return old, new, comm.traffic["window"] - before

    found, own = on_ranks(4, rank), shards.slabs
    expected = window(then[0], window(first[0], Span(0, 0)))
    assert all(new == expected for _, new, _ in found)
    old, new = found[0][:2]
    lacking = [
        {z for z in range(new.start, new.stop) if not old.start <= z < old.stop} - set(range(s.start, s.stop)) for s in own
    ]
    assert sum(sent for *_, sent in found) == sum(map(len, lacking)) * PLANE


@FEW
@given(degrees=st.tuples(*[st.integers(-180, 180)] * 3), ranks=st.integers(1, 12))
def test_the_corners_of_a_slab_bound_what_it_reads_without_displacement(degrees, ranks):
    matrix, partition = turned(*degrees), Partition.of(FIXED[0], ranks, 1)
    for slab, need in zip(partition.slabs, affine_reach(mapping_of(matrix), partition, FIXED).needs, strict=True):
        if len(slab):
            points = np.moveaxis(np.indices(FIXED)[:, slab.start : slab.stop], 0, -1) @ matrix[0, :3] + matrix[0, 3]
            assert need.start <= np.floor(points.min())
            assert need.stop >= np.floor(points.max()) + 2


def test_on_one_rank_every_residency_is_resident():
    whole = Image.whole(image(*MOVING), Grid(MOVING))
    made = [make_sampler(r, whole, ONE, Partition.of(MOVING[0], 1), SingleRank()) for r in RESIDENCIES]
    assert {type(s) for s in made} == {Resident}

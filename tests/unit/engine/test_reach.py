"""The bound on the planes that are read holds until the next measurement."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine import loop
from daskreg.engine.halo import Block
from daskreg.engine.reach import Reach, ReachMonitor, SamplingMap, bound_reach, displaced_range, spans
from daskreg.engine.ring_schedule import RingSchedule
from daskreg.engine.smoothing import Smoother
from daskreg.grid import Partition, Span
from daskreg.kernels.composition.cpu import compose
from daskreg.kernels.sampling.cpu import plane_range
from daskreg.planning import REACH_INTERVAL
from daskreg.similarity import MSE
from daskreg.transforms.linear import linear_part, to_fixed_point
from tests.cases import vectors
from tests.phantoms import rotation
from tests.unit.engine.spread import Registration, on_ranks

SHAPE = (23, 6, 7)
FEW = settings(max_examples=40, deadline=None)


def mapping_of(matrix, first=0):
    return SamplingMap(first, to_fixed_point(matrix), linear_part(matrix))


def turned(degrees, stretch=1.0):
    m = np.eye(4)
    m[:3, :3] = rotation(degrees) @ np.diag([stretch, 1, 1 / stretch])
    return m


def read(mapping, u):
    """First and last plane of the image that each plane of u reads, both neighbours of a position counted."""
    rows = plane_range(u.shape[1:], *mapping, u)
    return np.floor(-rows[1].max(axis=1)), np.floor(rows[0].max(axis=1)) + 1


def assert_within(reach, mapping, u, planes=slice(None)):
    first, last = read(mapping, u)
    assert (reach.start[planes] <= first).all()
    assert (reach.stop[planes] > last).all()


# --- the bound ----------------------------------------------------------------------------------------------------------


def stepped(u, d, step, smoother):
    """The displacement after a step along d whose longest vector is as long as ``step`` allows."""
    longest = np.sqrt((d**2).sum(axis=0).max())
    composed, smoothed = np.empty_like(u), np.empty_like(u)
    compose(SHAPE, 0, SHAPE[0], np.array([step], np.float32), d / longest, u, composed)
    smoother.into(SHAPE, composed, np.empty_like(u), smoothed)
    return smoothed


def measured(mapping, u, reach, step):
    """As a rank that is alone."""
    block = Block(SHAPE, Partition.of(SHAPE[0], 1))
    return ReachMonitor(block, mapping, block.partition, reach, step, SingleRank()).begin(u, 0)


@FEW
@given(
    seed=st.integers(0, 999), size=st.sampled_from([0.0, 0.5, 8.0]), step=st.sampled_from([0.05, 0.25, 0.5]),
    sigma=st.sampled_from([0.0, 0.5, 1.0, 2.0]), degrees=st.tuples(*[st.integers(-180, 180)] * 3), stretch=st.floats(0.3, 3),
    common=st.tuples(*[st.integers(-3, 3)] * 3),
)  # fmt: skip
def test_steps_between_two_measurements_stay_within_the_bound(seed, size, step, sigma, degrees, stretch, common):
    """The longest steps allowed, all in one direction or alternating, of any displacement, under any linear map."""
    mapping, smoother = mapping_of(turned(degrees, stretch)), Smoother(Block(SHAPE, Partition.of(SHAPE[0], 1)), sigma)
    u = vectors(*SHAPE, size=size, seed=seed)
    reach = measured(mapping, u, smoother.reach + 1, step)
    assert_within(reach, mapping, u)
    for k in range(REACH_INTERVAL):
        d = vectors(*SHAPE, seed=seed + k * (common == (0, 0, 0))) + np.reshape(common, (3, 1, 1, 1)).astype(np.float32)
        u = stepped(u, d, step, smoother)
        assert_within(reach, mapping, u)


def test_more_steps_than_between_two_measurements_exceed_the_bound():
    """Otherwise the bound would be uselessly wide."""
    mapping, smoother = mapping_of(np.eye(4)), Smoother(Block(SHAPE, Partition.of(SHAPE[0], 1)), 0.5)
    u, d = np.zeros((2, 3, *SHAPE), np.float32)
    d[0] = 1
    reach = measured(mapping, u, smoother.reach + 1, 0.5)
    for _ in range(REACH_INTERVAL + 5):
        u = stepped(u, d, 0.5, smoother)
    with pytest.raises(AssertionError):
        assert_within(reach, mapping, u)


def test_a_bump_widens_the_bound_only_where_it_can_move_to():
    table = np.zeros((2, 100))
    table[0, 50] = 30
    reach = bound_reach(mapping_of(np.eye(4)), Partition.of(100, 1), (100, 4, 4), table, 2, 3, 0.25)
    stop, still = reach.stop - np.arange(100), 3  # the neighbour above, a voxel of doubt, half a voxel of two steps
    assert (stop[44:57] == 30 + still).all()
    assert (np.delete(stop, range(44, 57)) == still).all()
    np.testing.assert_array_equal(reach.start, np.arange(100) - 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_diverging_displacement_gives_finite_planes(value):
    """The loss is read a few iterations later; until then sampling continues."""
    u = np.zeros((3, *SHAPE), np.float32)
    u[0, 3, 2, 2] = value
    with np.errstate(all="ignore"):
        needs = measured(mapping_of(np.eye(4)), u, 2, 0.5).needs[0]
        assert abs(needs.start) < 2**40 > abs(needs.stop)


def test_all_ranks_compute_the_same_bound():
    """Idle ones too; and the same as a single rank."""
    mapping, u, blocks = (
        mapping_of(turned((20, -30, 40))),
        vectors(*SHAPE, size=3),
        Partition(SHAPE[0], Partition.of(SHAPE[0], 4).slabs),
    )

    def rank(comm):
        own = blocks[comm.rank]
        block = Block(SHAPE, blocks, comm.rank, 0)
        return ReachMonitor(block, mapping, blocks, 2, 0.25, comm).begin(np.ascontiguousarray(u[:, own.start : own.stop]), 0)

    alone = measured(mapping, u, 2, 0.25)
    for found in on_ranks(4, rank):
        np.testing.assert_array_equal(found.start, alone.start)
        np.testing.assert_array_equal(found.stop, alone.stop)
    assert 0 in blocks.lengths


# --- in the loop --------------------------------------------------------------------------------------------------------

LOOPS = {
    "short filter": {"smooth_warp": 0.5, "maximum_step": 0.5},
    "long filter": {"smooth_warp": 1.0, "maximum_step": 0.5},
    "longer filter than a block": {"smooth_warp": 2.0, "maximum_step": 0.35},
    "no filter": {"smooth_warp": 0.0, "smooth_gradient": 0.0, "maximum_step": 0.5},
}


@pytest.mark.parametrize("residency", ["window", "ring"])
@pytest.mark.parametrize("name", LOOPS)
def test_no_sample_reads_a_plane_outside_the_bound(name, residency, monkeypatch):
    """In every iteration, before and after every measurement: noise on noise, rotated, at the longest step allowed."""
    rng, seen, make = np.random.default_rng(3), [], loop.make_sampler
    stage = Deformable(similarity=MSE(), scales=(1,), iterations=(2 * REACH_INTERVAL + 5,), tolerance=0, **LOOPS[name])
    case = Registration(*(rng.random(s).astype(np.float32) for s in ((37, 8, 9), (33, 10, 7))), Config(stages=(stage,)))

    def watched(*arguments, **named):
        sampler, known = make(*arguments, **named), []
        prepare, sample = sampler.prepare, sampler.sample

        def prepared(reach):
            known.append(reach)
            return prepare(reach)

        def sampled(box, mapping, u, *rest, **more):
            first, own = mapping.first, slice(box[0].start, box[0].stop)
            here = mapping._replace(first=first + own.start), np.ascontiguousarray(u[:, own])
            assert_within(known[-1], *here, slice(own.start + first, own.stop + first))
            seen.append((len(known), float(np.abs(u).max())))
            sample(box, mapping, u, *rest, **more)

        sampler.prepare, sampler.sample = prepared, sampled
        return sampler

    monkeypatch.setattr(loop, "make_sampler", watched)
    case.run(3, residency)
    times = [n for n, _ in seen]
    assert [times.count(n) for n in (1, 2, 3)] == [
        3 * (REACH_INTERVAL + 1),
        3 * REACH_INTERVAL,
        3 * 4,
    ]  # of 3 ranks, REACH_INTERVAL steps behind at most
    assert max(size for _, size in seen) > 0.75


@pytest.mark.parametrize("done", [0, 3, REACH_INTERVAL])
def test_the_displacement_is_measured_at_fixed_intervals_from_the_start_of_a_level(done):
    block = Block(SHAPE, Partition.of(SHAPE[0], 1))
    monitor = ReachMonitor(block, mapping_of(np.eye(4)), block.partition, 2, 0.25, SingleRank())
    monitor.begin(np.zeros((3, *SHAPE), np.float32), done)
    times = [t for t in range(done + 1, 40) if monitor.due(t)]
    assert times == list(range(done + REACH_INTERVAL + 1, 40, REACH_INTERVAL))


# --- who reads what -----------------------------------------------------------------------------------------------------

REACHES = st.lists(st.tuples(st.integers(-5, 25), st.integers(0, 6)), min_size=12, max_size=12)


def reach_of(spans_, ranks):
    start, stop = (np.array(v) for v in zip(*((a, a + n) for a, n in spans_), strict=True))
    return Reach(Partition.of(len(spans_), ranks, 1), start, stop)


@settings(max_examples=200, deadline=None)
@given(reads=REACHES, ranks=st.integers(1, 5), planes=st.integers(1, 22))
def test_a_route_sends_every_plane_to_the_ranks_that_read_it(reads, ranks, planes):
    """Sender and receiver agree."""
    reach, shards = reach_of(reads, ranks), Partition.of(planes, ranks, 1)
    routes = [RingSchedule.of(reach, shards, r) for r in range(ranks)]
    for r, route in enumerate(routes):
        own = [z for part in (route.inner, *route.outer) for z in range(part.start, part.stop)]
        slab = reach.partition[r]
        assert sorted(own) == list(range(slab.start, slab.stop))
        for z in own:
            wanted = {k for k in range(*reads_of(reads[z])) if 0 <= k < planes}
            inside = route.inner.start <= z < route.inner.stop
            assert not inside or wanted <= set(range(shards[r].start, shards[r].stop))
            for s, shard in enumerate(shards.slabs):
                there = wanted & set(range(shard.start, shard.stop))
                if there and not inside:
                    assert any(part.start <= z < part.stop for part in route.sampling[s])
                    assert s == r or there <= set(range(route.received[s].start, route.received[s].stop))
        assert all(route.sent[q] == routes[q].received[r] for q in range(ranks))
        assert not len(route.received[r])


def reads_of(pair):
    return pair[0], pair[0] + pair[1]


@settings(max_examples=100, deadline=None)
@given(reads=REACHES)
def test_the_inner_planes_are_the_longest_run(reads):
    reach, slab, shard, image = reach_of(reads, 1), Span(2, 11), Span(4, 9), Span(0, 14)
    good = [set(range(*reads_of(reads[z]))) & set(range(14)) <= set(range(4, 9)) for z in range(2, 11)]
    found, run, best = reach.inner(slab, shard, image), 0, 0
    for ok in good:
        run = run + 1 if ok else 0
        best = max(best, run)
    assert len(found) == best
    assert all(good[z - 2] for z in range(found.start, found.stop))


def test_a_slab_reads_what_its_planes_read():
    reach = reach_of([(z, 4) for z in range(12)], 3)
    assert reach.needs == [Span(0, 7), Span(4, 11), Span(8, 15)]
    assert Reach.of_slabs(reach.partition, reach.needs).needs == reach.needs


def test_the_range_of_a_block_is_that_of_all_its_voxels():
    u = np.zeros((3, *SHAPE), np.float32)
    u[0, 5, 3, 3] = 7.5
    found = displaced_range(Block(SHAPE, Partition.of(SHAPE[0], 1)), mapping_of(np.eye(4)), u)
    assert found == (0.0, 22.0)
    assert spans(np.array([found, (np.inf, -np.inf)])) == [Span(-1, 25), Span(0, 0)]

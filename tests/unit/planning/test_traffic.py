"""The bytes that a plan states for an iteration are those that the communicators count."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from daskreg.config import Affine, Config, Deformable
from daskreg.grid import Grid, Span
from daskreg.planning import REACH_INTERVAL, RESIDENCIES, make_plan
from daskreg.planning.traffic import ASSUMED_DRIFT, reached, traffic
from daskreg.similarity import LNCC, MI, MSE
from tests.phantoms import rotation
from tests.unit.engine.spread import Registration, on_ranks

FIXED, MOVING = (61, 11, 10), (57, 12, 9)
LOSSES = {"mse": MSE(), "lncc": LNCC(), "center": LNCC(radius=3, gradient="center"), "mi": MI(bins=16)}
ITERATIONS = 2, 2 + REACH_INTERVAL  # what the longer run sends more: so many iterations, one of which measures where blocks reach


def smooth(shape, seed):
    return gaussian_filter(np.random.default_rng(seed).random(shape), 2).astype(np.float32)


def case(stage, masked=False, shapes=(FIXED, MOVING)):
    masks = [np.ones(s, np.float32) if masked else None for s in shapes]
    return Registration(smooth(shapes[0], 0), smooth(shapes[1], 1), Config(stages=(stage,)), tuple(masks))


def deformable(loss, iterations, **options):
    return Deformable(similarity=loss, scales=(1,), iterations=(iterations,), tolerance=0, **options)


def counted(make, ranks, residency, **options):
    """Bytes by purpose that the longer of two runs has sent more than the shorter one, by rank; and the longer one's plan."""
    totals = []
    for iterations in ITERATIONS:
        found = case(make(iterations), **options)
        totals.append(on_ranks(ranks, lambda comm, found=found: found.outcome(found.rank(comm, residency)).traffic))
    more = [{k: b[k] - a[k] for k in ("halo", "ring", "window", "sum")} for a, b in zip(*totals, strict=True)]
    return more, found.plan(ranks, residency)


def planned(plan):
    return traffic(plan, plan.config.stages[0], plan.levels[0][0])


def steps():
    return ITERATIONS[1] - ITERATIONS[0]


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_planned_halos_and_sums_of_a_deformable_stage_are_exact(loss, ranks, residency):
    more, plan = counted(lambda n: deformable(LOSSES[loss], n), ranks, residency)
    for measured, reported in zip(more, planned(plan), strict=True):
        assert measured["halo"] == steps() * reported.halo > 0
        assert measured["sum"] == steps() * reported.sums > 0
        assert measured["window"] == 0
        assert (measured["ring"] > 0) == (residency == "ring")


@pytest.mark.parametrize("options", [{"masked": True}, {"shapes": ((13, 9, 8), MOVING)}], ids=["masks", "thin blocks"])
def test_masks_and_blocks_thinner_than_a_halo_are_planned_exactly(options):
    more, plan = counted(lambda n: deformable(LNCC(radius=3), n, smooth_gradient=1.5, smooth_warp=1.0), 5, "ring", **options)
    for measured, reported in zip(more, planned(plan), strict=True):
        assert measured["halo"] == steps() * reported.halo > 0
        assert measured["sum"] == steps() * reported.sums


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_ring_sends_at_most_the_planned_bytes_and_not_much_less(ranks, masked):
    """A block is assumed to reach ASSUMED_DRIFT planes beyond its affine image at either end; these go to the neighbours."""
    more, plan = counted(lambda n: deformable(MSE(), n), ranks, "ring", masked=masked)
    plane = MOVING[1] * MOVING[2] * 4 * (1 + masked)
    for measured, reported in zip(more, planned(plan), strict=True):
        assert reported.ring - 2 * (ranks - 1) * ASSUMED_DRIFT * plane <= measured["ring"] / steps() <= reported.ring


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_planned_bytes_of_an_affine_evaluation_are_exact(loss, residency):
    """The number of evaluations of L-BFGS is not known in advance; the total is a multiple of the bytes of one."""
    more, plan = counted(lambda n: Affine(similarity=LOSSES[loss], scales=(1,), iterations=(n,), tolerance=0), 3, residency)
    for measured, reported in zip(more, planned(plan), strict=True):
        looks, rest = divmod(measured["sum"], reported.sums)
        assert looks >= steps()
        assert rest == 0
        assert measured["halo"] == looks * reported.halo
        assert measured["ring"] <= looks * reported.ring


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_a_table_shows_the_rank_that_sends_most(residency):
    plan = case(deformable(LNCC(), 3)).plan(3, residency)
    assert plan.traffic(0, plan.levels[0][0]) == max(w.total for w in planned(plan))


# --- which planes a block reaches ---------------------------------------------------------------------------------------


def about_its_centre(shape, degrees):
    """A grid turned about its centre and the x axis."""
    turn, middle = rotation((0, 0, degrees)), (np.asarray(shape) - 1) / 2
    return Grid(shape, direction=tuple(map(tuple, turn)), origin=tuple(middle - turn @ middle))


@pytest.mark.parametrize("degrees", [0, 20, 45, 90])
def test_a_plan_reads_all_of_a_perpendicular_image(degrees):
    """Of four blocks, one in the middle reads the same planes rotated: all of the image where they are perpendicular."""
    shape, angle = (256, 256, 32), np.deg2rad(degrees)
    plan = make_plan(Grid(shape), about_its_centre(shape, degrees), Config(stages=(deformable(MSE(), 1),)), workers=4)
    extent = 63 * np.cos(angle) + 255 * np.sin(angle)
    longest = max(map(len, reached(plan, plan.levels[0][0])))
    assert min(256 - ASSUMED_DRIFT, extent) <= longest <= min(256, extent + 2 * ASSUMED_DRIFT + 3)


def test_a_plan_assumes_that_moments_align_the_centres():
    shape, there = (64, 8, 8), Grid((64, 8, 8), origin=(1000.0, 0.0, 0.0))
    recipe = Config.parse({"stages": ["moments", "deformable"]})
    plan = make_plan(Grid(shape), there, recipe, workers=2)
    assert reached(plan, plan.levels[1][-1]) == [Span(0, 32 + ASSUMED_DRIFT + 1), Span(32 - ASSUMED_DRIFT, 64)]

"""The result does not depend on the number of ranks, the residency or interruptions, bit for bit."""

from dataclasses import asdict
from threading import Lock

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from daskreg.config import Affine, Config, Deformable, Moments, Rigid, Search
from daskreg.engine.planes import piecewise
from daskreg.engine.rank import RunState
from daskreg.engine.report import SAVE, STOP, Watch
from daskreg.errors import Stopped
from daskreg.grid import Grid
from daskreg.planning import REACH_INTERVAL, RESIDENCIES
from daskreg.similarity import LNCC, MI, MSE, NGF
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks, whole

FIXED, MOVING = (17, 12, 11), (15, 13, 12)
RANKS = [(n, residency) for n in (2, 3, 4, 5) for residency in RESIDENCIES]
SOME = [(2, "window"), (3, "replicate"), (5, "window"), (21, "ring")]
FEW = [(3, "ring"), (5, "window")]
SIMILARITIES = {
    "mse": MSE(),
    "lncc exact": LNCC(radius=2, noise=0.05),
    "lncc center": LNCC(radius=3, gradient="center"),
    "mi": MI(bins=16),
    "ngf": NGF(),
}


def texture(shape, seed):
    """Smooth noise."""
    return gaussian_filter(np.random.default_rng(seed).random(shape), 1.5).astype(np.float32)


def masks():
    """Both hard and soft edges, across the cuts."""
    fixed, moving = np.ones(FIXED, np.float32), np.ones(MOVING, np.float32)
    fixed[:4, :5], fixed[9:11], moving[6:9, 3:], moving[12:, :, :6] = 0, 0.5, 0.25, 0
    return fixed, moving


def registration(stages, masked=False):
    """Of two unlike textures."""
    return Registration(texture(FIXED, 0), texture(MOVING, 1), Config(stages=stages), masks() if masked else (None, None))


def deformable(similarity, **options):
    """Two levels of a few iterations."""
    return Deformable(similarity=similarity, scales=(2, 1), iterations=(4, 3), tolerance=0, **options)


CASES = {
    **{f"affine, {name}": (Affine(similarity=s, scales=(2, 1), iterations=(3, 2)),) for name, s in SIMILARITIES.items()},
    **{f"deformable, {name}": (deformable(s),) for name, s in SIMILARITIES.items()},
}
OTHERS = {
    "all stages": (Moments(), Search(size=16), Rigid(scales=(1,), iterations=(3,)), deformable(LNCC(radius=2), smooth_warp=0.7)),
    "a search over rotations": (Search(rotations="fine", contrast="any"), Rigid(scales=(1,), iterations=(3,))),
    "no smoothing of the warp": (deformable(MSE(), smooth_warp=0, smooth_gradient=2),),
    "ending at a coarse scale": (Deformable(similarity=MSE(), scales=(2,), iterations=(5,)),),
}


def assert_nowhere_to_be_seen(case, choices):
    expected = case.run(1)
    assert len(expected.losses[-1]) > 1
    for ranks, residency in choices:
        assert_same_bits(case.run(ranks, residency), expected)


@pytest.mark.parametrize("name", CASES)
def test_the_result_does_not_depend_on_the_number_of_ranks(name):
    """Grids of different shape, spacing and direction; blocks thinner than the halo."""
    assert_nowhere_to_be_seen(registration(CASES[name]), RANKS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "rotations" in n else n for n in OTHERS])
def test_the_result_of_other_stages_does_not_depend_on_the_number_of_ranks(name):
    """Nor where some ranks have no planes."""
    assert_nowhere_to_be_seen(registration(OTHERS[name]), FEW if name in ("all stages", "a search over rotations") else SOME)


@pytest.mark.parametrize("similarity", [MSE(), LNCC(radius=2), MI(bins=16), NGF()], ids=["mse", "lncc", "mi", "ngf"])
def test_the_result_with_masks_does_not_depend_on_the_number_of_ranks(similarity):
    stages = Affine(similarity=similarity, scales=(2,), iterations=(3,)), deformable(similarity)
    assert_nowhere_to_be_seen(registration(stages, masked=True), SOME)


LONG = {  # planes, moving ones, what of the stage is unlike: most planes of a block read the rank's own shard, and drift
    "alike": (50, 48, {"similarity": LNCC(radius=1)}),
    "centre": (50, 48, {"similarity": LNCC(radius=2, gradient="center")}),
    "finer": (40, 90, {"similarity": MSE(), "step": 1.0}),
    "edges": (50, 48, {"similarity": NGF()}),
    "coarser": (60, 21, {"similarity": MI(bins=16)}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_a_ring_gives_the_same_bits_where_most_planes_read_their_own_shard(name, masked):
    """Over two measurements of the reach."""
    planes, others, given = LONG[name]
    shapes = (planes, 6, 7), (others, 7, 6)
    stage = Deformable(scales=(1,), iterations=(2 * REACH_INTERVAL + 3,), tolerance=0, **given)
    some = [np.where(texture(shape, 3) > 0.45, 1, 0.5).astype(np.float32) if masked else None for shape in shapes]
    case = Registration(texture(shapes[0], 0), texture(shapes[1], 1), Config(stages=(stage,)), tuple(some))
    case.grids = Grid(shapes[0]), Grid(shapes[1], (planes / others, 6 / 7, 7 / 6))
    assert_nowhere_to_be_seen(case, [(3, "ring"), (2, "ring"), (3, "window")])


def test_the_cases_are_not_trivial():
    """Otherwise equal bits above would prove nothing."""
    result = registration(CASES["deformable, mse"]).run(1)
    assert np.abs(result.displacement).max() > 0.5
    assert np.abs(registration(CASES["affine, mse"]).run(1).affine - np.eye(4)).max() > 0.01


# --- interrupted and resumed ------------------------------------------------------------------------------------------


class Asking(Watch):
    """Asks for something every time that a rank listens, or at the n-th time alone."""

    def __init__(self, what, only=None):
        self.what, self.only, self.times = what, only, 0

    def asked(self, *, level_end=False):
        self.times += 1
        return self.what if self.only in (None, self.times) else 0.0


class Memory:
    """Checkpoints that ranks share: states, and whole fields put together from their planes."""

    def __init__(self):
        self.saved, self.lock = [], Lock()

    def of(self, comm):
        """What this rank saves to."""
        number = 0

        def save(state, fields, shape):
            nonlocal number
            with self.lock:
                if number == len(self.saved):
                    self.saved.append((asdict(state), {name: np.full((3, *shape), np.nan, np.float32) for name in fields}))
                reported, kept = self.saved[number]
                if comm.rank == 0:
                    reported.update(asdict(state))
            for name, (own, field) in fields.items():
                for span, planes in piecewise(field, own):
                    kept[name][:, span.start : span.stop] = planes
            number += 1

        return save


def resumed(case, saved, ranks, residency):
    """The rest of a run from a checkpoint."""
    reported, fields = saved

    def rest(comm):
        rank = case.rank(comm, residency)
        rank.resume(RunState(**reported), lambda name, span: fields[name][:, span.start : span.stop])
        return case.outcome(rank)

    return whole(on_ranks(ranks, rest))


STAGES = (Affine(similarity=MSE(), scales=(2, 1), iterations=(3, 3)), deformable(LNCC(radius=2), smooth_warp=0.7))


@pytest.mark.parametrize(
    ("before", "after"), [((1, "replicate"), (3, "ring")), ((3, "ring"), (1, "replicate")), ((2, "window"), (5, "window"))]
)
def test_a_run_resumed_anywhere_on_other_ranks_gives_the_same_bits(before, after):
    """Checkpoints at the end of every level and in the midst of the deformable ones; making them changes nothing either."""
    case, memory = registration(STAGES), Memory()
    expected = case.run(1)
    ranks, residency = before
    saving = on_ranks(ranks, lambda comm: case.outcome(case.rank(comm, residency, Asking(SAVE), memory.of(comm))))
    assert_same_bits(whole(saving), expected)
    midst = [bool(reported["losses"]) for reported, _ in memory.saved]
    assert midst.count(True) == 3 + 2  # of 4 and of 3 iterations: after the last of a level comes its end
    assert midst.count(False) == 4
    for saved in memory.saved[::3]:
        assert all(np.isfinite(field).all() for field in saved[1].values())
        assert_same_bits(resumed(case, saved, *after), expected)


@pytest.mark.parametrize("moment", [1, 4, 9, 12])
def test_a_stop_request_stops_every_rank_and_the_run_resumes_from_there(moment):
    """In the affine stage, at a level's end, in the midst of a level."""
    case, memory = registration(STAGES), Memory()

    def until_then(comm):
        watch = Asking(STOP, moment) if comm.rank == 0 else Watch()
        with pytest.raises(Stopped):
            case.rank(comm, "window", watch, memory.of(comm)).run()

    on_ranks(3, until_then)
    assert len(memory.saved) == 1
    assert_same_bits(resumed(case, memory.saved[0], 2, "ring"), case.run(1))

"""The verdict: right poses are ok, wrong ones fail, and where little can be compared it says so."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from daskreg.comm import SingleRank
from daskreg.engine import evidence as evidence_module
from daskreg.engine.coarse_pair import coarse_pair
from daskreg.engine.edge_rivals import EdgeRivals, edge_rivals
from daskreg.engine.evidence import Evidence, SquaredCorrelation, gather_evidence
from daskreg.engine.filling import NO_FILLING, Filling
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.information import information_of_maps
from daskreg.engine.match_map import MatchMap
from daskreg.engine.planes import ArrayPlanes
from daskreg.engine.report import LevelReport, Outcome
from daskreg.engine.rivals import best_rival, merit
from daskreg.engine.verdict import MINIMUM_WINDOWS, Verdict, judge
from daskreg.errors import Unreadable
from daskreg.grid import Grid, Partition, Region
from daskreg.transforms.linear import linear_about, translation
from tests.phantoms import blobs, rotation
from tests.unit.engine.spread import cut, on_ranks, piece

SHAPE = (28, 32, 30)
GRID = Grid(SHAPE)
FIXED = blobs(SHAPE, 3)
GOOD = Evidence(0.8, 0.8, 0.05, 0.05, 0.6, 0.6, 0.1, 0.15, 0.08, 0.0, 0.9, 0.5, 60.0, 1.02, (32, 32, 32))


class _Plan:
    fixed = moving = GRID


@pytest.fixture
def without_edges(monkeypatch):
    """Edges are not compared, which takes most of the time."""
    monkeypatch.setattr(evidence_module, "edge_rivals", lambda pair, start: EdgeRivals())


def after_search(filling):
    """Reports of a run whose search left something out, or did not."""
    return [LevelReport("search", 1, SHAPE, detail=filling.report() if filling != NO_FILLING else {})]


def _pair(moving, world, u=None, fixed=FIXED, masks=(None, None), filling=NO_FILLING):
    plan = _Plan()
    plan.fixed, plan.moving = Grid(fixed.shape), Grid(moving.shape)
    images = tuple(Image.whole(v, Grid(v.shape), m) for v, m in zip((fixed, moving), masks, strict=True))
    block = Block(fixed.shape, Partition.of(fixed.shape[0], 1))
    outcome = Outcome(world, None if u is None else ArrayPlanes(u, 0), after_search(filling), block)
    return coarse_pair(plan, outcome, images, SingleRank())


def evidence(moving=FIXED, world=None, u=None, fixed=FIXED, masks=(None, None)):
    """What is found of a result on these images, and the map."""
    return gather_evidence(_pair(moving, np.eye(4) if world is None else world, u, fixed, masks), np.eye(4))


def status(*args, **kwargs):
    return judge(evidence(*args, **kwargs)[0], []).status


def turned(degrees):
    return linear_about(GRID.center, rotation((degrees, 0, 0)))


@pytest.mark.parametrize("contrast", [lambda v: v, lambda v: (v > 0.02) * (1.3 - v)], ids=["same", "inverted"])
def test_a_right_pose_is_ok_whatever_the_contrast(contrast):
    found, _ = evidence(contrast(FIXED).astype(np.float32))
    assert judge(found, []).status == "ok"
    assert found.similarity > 1.2 * found.best_random


@pytest.mark.parametrize("world", [turned(35), turned(180), translation(np.array([0, 8.0, 0]))], ids=["35", "180", "shift"])
def test_a_wrong_pose_fails_with_numbers(world):
    verdict = judge(evidence(world=world)[0], [])
    assert verdict.status == "failed"
    assert any(character.isdigit() for character in verdict.line())


def test_a_map_that_shrinks_the_image_to_nothing_is_judged_too():
    """A lattice as fine as that would take 77 GB."""
    world = linear_about(GRID.center, 0.02 * np.eye(3))
    verdict = judge(evidence(world=world)[0], [])
    assert verdict.status != "ok"
    assert "changes lengths by a factor of 50.0" in verdict.line()


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ((0.92, 0.80, 0.9), (0.80, 0.60, 0.9), "doubtful"),
        ((0.92, 0.80, 0.9), (0.91, 0.74, 0.9), "ok"),  # as much as right results lose from where they are started right
        ((0.92, 0.80, 0.9), (0.80, 0.81, 0.9), "ok"),  # two modalities
        ((-0.5, 0.60, 0.9), (-0.9, 0.50, 0.9), "ok"),  # contrasts that are turned around correlate below 0
        ((-0.9, 0.60, 0.9), (-0.5, 0.50, 0.9), "doubtful"),
        ((0.92, 0.80, 0.2), (0.80, 0.60, 0.9), "ok"),  # a small overlap is alike by chance
        ((0.0, 0.0, 0.9), (0.0, 0.0, 0.9), "ok"),
    ],
)
def test_images_that_were_more_alike_at_the_start_are_doubtful(before, after, status):
    measures = tuple(dict(zip(("ncc", "mi", "overlap"), values, strict=True)) for values in (before, after))
    verdict = judge(GOOD, [], {}, measures)
    assert verdict.status == status
    if status == "doubtful":
        assert "the images were more alike at the start: correlation from" in verdict.line()
        assert f"{before[0]:.3f} to {after[0]:.3f}, mutual information from {before[1]:.3f} to {after[1]:.3f}" in verdict.line()
        searched = [level.as_dict() for level in after_search(Filling(0.0))]
        assert judge(GOOD, searched, {}, measures).status == "ok"  # what lies in filling has no say


@pytest.mark.usefixtures("without_edges")
@pytest.mark.parametrize("world", [translation(np.array([0.4, 0.8, 0.7])), turned(8)], ids=["shift", "8"])
def test_a_pose_slightly_off_is_doubtful_and_says_how_far(world):
    found, _ = evidence(world=world)
    points = GRID.to_world(np.argwhere(FIXED > 0.1))
    off = np.linalg.norm(points @ world[:3, :3].T + world[:3, 3] - points, axis=1).mean()
    assert judge(replace(found, drift=0.0), []).status == "ok"
    assert found.drift == pytest.approx(off, rel=0.25)
    verdict = judge(found, [])
    assert verdict.status == "doubtful"
    assert f"{found.drift:.1f} voxels" in verdict.line()


@pytest.mark.usefixtures("without_edges")
def test_a_right_pose_stays_where_it_is_with_and_without_what_a_displacement_undoes():
    shift = translation(np.array([0, 2.0, 0]))
    u = np.zeros((3, *SHAPE), np.float32)
    u[1] = -2
    assert evidence()[0].drift < 0.1
    assert evidence(world=shift, u=u)[0].drift < 0.1 < 1.5 < evidence(world=shift)[0].drift


def test_another_object_fails():
    assert status(blobs(SHAPE, 8)) == "failed"


def test_a_displacement_fitted_to_a_wrong_pose_does_not_hide_it():
    """Voxel by voxel, the value nearest to the fixed image's within reach: in place everywhere, and wrong."""
    wrong = blobs(SHAPE, 8)
    steps = [(z, y, x) for z in range(-3, 4) for y in range(-3, 4) for x in range(-3, 4)]
    costs = np.stack([gaussian_filter((np.roll(wrong, (-z, -y, -x), (0, 1, 2)) - FIXED) ** 2, 1) for z, y, x in steps])
    u = np.moveaxis(np.array(steps, np.float32)[costs.argmin(axis=0)], -1, 0).copy()
    found, _ = evidence(wrong, u=u)
    assert found.in_place > 0.99
    assert judge(found, []).status != "ok"


@pytest.mark.usefixtures("without_edges")
def test_a_large_smooth_displacement_counts():
    u = np.zeros((3, *SHAPE), np.float32)
    u[1] = 6 * np.sin(np.linspace(0, np.pi, SHAPE[0])).reshape(-1, 1, 1)
    moving = np.stack([np.roll(plane, round(float(-s)), 0) for plane, s in zip(FIXED, -u[1, :, 0, 0], strict=True)])
    assert status(np.ascontiguousarray(moving)) != "ok"
    assert status(np.ascontiguousarray(moving), u=u) == "ok"


def test_a_displacement_that_does_harm_lowers_the_mutual_information():
    """Two contrasts, that overlap where they are: any similarity of one contrast gains by it, and edges stay smooth."""
    u = np.zeros((3, *SHAPE), np.float32)
    u[2] = 1.5 * np.sin(np.linspace(0, 3 * np.pi, SHAPE[1])).reshape(-1, 1)
    dark = (FIXED > 0.02) * (1.3 - FIXED)
    affine, harmed = information_of_maps(_pair(dark, np.eye(4), u))
    assert harmed < 0.8 * affine
    undone = map_coordinates(dark, np.indices(SHAPE) + u, order=1, mode="nearest")
    affine, found = information_of_maps(_pair(undone, np.eye(4), -u))
    assert found > 1.2 * affine
    assert information_of_maps(_pair(dark, np.eye(4))) == (0, 0)
    mask = np.ones(SHAPE, np.float32)
    mask[:, 6:] = 0
    u[:, :, :6] = 0
    affine, still = information_of_maps(_pair(dark, np.eye(4), u, masks=(mask, None)))
    assert affine == still > 0


def test_where_little_is_compared_it_is_doubtful_and_says_why():
    mask = np.zeros(SHAPE, np.float32)
    mask[10:16, 12:18, 12:18] = 1
    verdict = judge(evidence(masks=(mask, None))[0], [])
    assert verdict.status == "doubtful"
    assert "too little to judge" in verdict.line()


@pytest.mark.usefixtures("without_edges")
def test_a_mask_takes_out_what_does_not_match():
    moving = FIXED.copy()
    moving[:, :16] = blobs(SHAPE, 8)[:, :16]
    mask = np.zeros(SHAPE, np.float32)
    mask[:, 16:] = 1
    assert evidence(moving)[0].pose < evidence(moving, masks=(mask, None))[0].pose - 0.2


@pytest.mark.usefixtures("without_edges")
def test_the_map_shows_where_it_does_not_match():
    moving = FIXED.copy()
    moving[:, :16] = blobs(SHAPE, 8)[:, :16]
    _, states = evidence(moving)
    bad = [float((part == 2).sum() / (part > 0).sum()) for part in (states[:, :13], states[:, 20:])]
    assert bad[0] > 0.6
    assert bad[1] < 0.1


def test_a_rival_pose_is_found_by_a_refinement():
    """The result is off by 40 degrees, the start that is tried by 15: it leads to the right pose."""
    found = _pair(FIXED, turned(40))
    correlation = SquaredCorrelation(found)
    rival = best_rival(found, [turned(15)], GRID.center, correlation, SquaredCorrelation)
    assert rival > 1.3 * merit(*correlation(*found.sample(found.world)))
    right = _pair(FIXED, np.eye(4))
    assert best_rival(right, [turned(8)], GRID.center, SquaredCorrelation(right), SquaredCorrelation) == 0


def test_edges_find_the_right_pose_from_a_wrong_one_anywhere():
    """As the result is off by more than half a turn and a shift, no pose around it leads to the right one."""
    world = translation(np.array([3.0, -4, 5])) @ turned(200)
    wrong, right = edge_rivals(_pair(FIXED, world), np.eye(4)), edge_rivals(_pair(FIXED, np.eye(4)), np.eye(4))
    assert wrong.rival > 1.5 * wrong.own
    assert right.own > 1.3 * right.rival
    assert wrong.rival == pytest.approx(right.own, rel=0.05)


def test_a_result_a_little_off_is_its_own_rival():
    found = edge_rivals(_pair(FIXED, translation(np.array([0.0, 4, 0]))), np.eye(4))
    assert found.rival > 1.3 * found.own


def test_a_single_plane_is_judged():
    plane = blobs((9, 96, 90), 2)[4:5]
    assert status(plane, fixed=plane) == "ok"
    assert status(np.ascontiguousarray(plane[:, ::-1]), fixed=plane) == "failed"


LARGE = blobs((80, 88, 84), 2)
CORNER = np.array([40.0, 16, 30])
PIECE = LARGE[40:64, 16:40, 30:54].copy()  # a forty-third of it


@pytest.mark.parametrize(("off", "expected"), [((0, 0, 0), "ok"), ((0, 3, 0), "failed"), ((-9, 4, 12), "failed")])
def test_a_piece_of_a_large_image_is_judged_in_detail(off, expected):
    pair = _pair(PIECE, translation(np.array(off) - CORNER), fixed=LARGE)
    found, states = gather_evidence(pair, pair.world)
    assert max(pair.factors) <= 2
    assert found.windows > MINIMUM_WINDOWS
    assert judge(found, []).status == expected
    whole = pair.of_whole(states)
    assert whole.shape == tuple(n // k for n, k in zip(LARGE.shape, pair.factors, strict=True))
    covered = np.zeros(whole.shape, bool)
    z, y, x = (slice(int(c) - o, int(c) - o + 24) for c, o in zip(CORNER, off, strict=True))
    covered[tuple(slice(s.start // k, -(-s.stop // k)) for s, k in zip((z, y, x), pair.factors, strict=True))] = True
    assert whole[covered].any()
    assert not whole[~covered].any()


def test_a_piece_is_judged_with_its_displacement_and_mask():
    """A displacement of two voxels, that the map lacks; what the mask leaves out does not match."""
    moved = np.array([0, 2.0, 0])
    u = np.zeros((3, *LARGE.shape), np.float32)
    u[1] = 2
    mask, spoilt = np.ones(LARGE.shape, np.float32), LARGE.copy()
    mask[40:46], spoilt[40:46] = 0, 1
    pair = _pair(PIECE, translation(-CORNER - moved), u, spoilt, (mask, None))
    assert pair.displacement.shape[1:] == pair.fixed.voxels.shape == pair.fixed.weight.shape
    assert judge(gather_evidence(pair, pair.world)[0], []).status == "ok"


def test_a_piece_that_a_map_takes_out_of_the_large_image_is_not_ok():
    pair = _pair(PIECE, translation(-CORNER + 500), fixed=LARGE)
    assert judge(gather_evidence(pair, pair.world)[0], []).status != "ok"


PADDING = 15  # voxels of zeros around blocks of 30
BLOCKS = Filling(0.0, 0.0, (Region((PADDING,) * 3, (45,) * 3),) * 2)
SHIFT = np.array([3.0, -2.0, 4.0])  # between the blocks, of one tissue: their faces lie in the same place


def padded_blocks():
    tissue = blobs((40, 40, 40), 6) + np.float32(0.2)
    a, b = tissue[5:35, 5:35, 5:35], tissue[8:38, 3:33, 9:39]
    return [np.pad(block, PADDING) for block in (a, b)]


def test_blocks_in_filling_are_judged_without_it():
    """With it the best pose is where faces meet, and half of the level's voxels would be empty."""
    fixed, moving = padded_blocks()
    start, right = np.eye(4), translation(-SHIFT)
    assert judge(gather_evidence(_pair(moving, right, fixed=fixed), start)[0], []).status != "ok"
    pair = _pair(moving, right, fixed=fixed, filling=BLOCKS)
    assert judge(found := gather_evidence(pair, start)[0], []).status == "ok"
    assert (pair.factors, pair.whole) == ((1, 1, 1), fixed.shape)
    assert found.overlap == pytest.approx(np.prod(30 - abs(SHIFT)) / 30**3, rel=0.15)
    faces = judge(gather_evidence(_pair(moving, start, fixed=fixed, filling=BLOCKS), start)[0], [])
    assert faces.status == "failed"


def test_voxels_of_filling_and_those_beside_have_no_weight():
    fixed, moving = padded_blocks()
    pair = _pair(moving, np.eye(4), fixed=fixed, filling=BLOCKS)
    known = np.zeros(fixed.shape, bool)
    known[(slice(PADDING + 1, 45 - 1),) * 3] = True
    np.testing.assert_array_equal(pair.moving.weight > 0, known)
    np.testing.assert_array_equal(pair.fixed.weight > 0, known[pair.region.slices])
    assert (known.sum(), pair.region) == (28**3, Region((PADDING - 1,) * 3, (46,) * 3))


def test_what_a_search_left_out_is_in_its_report():
    left_out = Filling(0.0, None, (Region((1, 2, 3), (4, 5, 6)), None))
    stored = json.loads(json.dumps(left_out.report()))
    later = LevelReport("rigid", 1, SHAPE)
    assert Filling.of_reports([LevelReport("search", 1, SHAPE, detail=stored), later]) == left_out
    assert Filling.of_reports([later]) == NO_FILLING
    earlier_version = LevelReport("search", 1, SHAPE, detail={"filling": [0.5, None]})
    assert Filling.of_reports([earlier_version]) == Filling(0.5)


@pytest.mark.parametrize("cuts", [(11,), (3, 3, 20)])
def test_ranks_see_the_same_pair(cuts):
    mask = (FIXED > 0.1).astype(np.float32)
    u = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)

    def seen(comm):
        partition = cut(SHAPE[0], *cuts[: comm.size - 1])
        images = piece(comm, FIXED, GRID, partition, mask=mask), piece(comm, FIXED[::-1].copy(), GRID, partition)
        block = Block(SHAPE, partition, comm.rank, 1)
        levels = after_search(Filling(None, float(FIXED[0, 0, 0]), (None, Region((2, 4, 2), SHAPE))))
        outcome = Outcome(turned(10), ArrayPlanes(u[:, block.held.start : block.held.stop], block.held.start), levels, block)
        return coarse_pair(_Plan, outcome, images, comm)

    (alone,), several = on_ranks(1, seen), on_ranks(len(cuts) + 1, seen)
    for pair in several:
        for a, b in ((alone.fixed.voxels, pair.fixed.voxels), (alone.fixed.weight, pair.fixed.weight),
                     (alone.moving.voxels, pair.moving.voxels), (alone.moving.weight, pair.moving.weight),
                     (alone.displacement, pair.displacement)):  # fmt: skip
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "expected", "word"),
    [
        ({}, "ok", "80 %"),
        ({"pose": 0.1, "in_place": 0.1, "pose_chance": 0.6}, "failed", "10 %"),
        (
            {"pose": 0.1, "pose_chance": 0.6},
            "failed",
            "only 10 % of the image matches best where it is, by the affine map or a smoothed displacement (80 % by",
        ),
        ({"pose": 0.1, "pose_similarity": 0.16}, "failed", "10 %"),
        ({"pose": 0.1, "pose_similarity": 0.2}, "doubtful", "10 %"),
        ({"rival": 1.2}, "doubtful", "1.20 times as good"),
        ({"pose_chance": 0.6}, "doubtful", "60 % of the image correlates no better than chance"),
        ({"pose": 0.37, "best_random": 0.7}, "failed", "0.700 against 0.600"),
        ({"pose": 0.37}, "doubtful", "37 %"),
        ({"in_place": 0.2}, "doubtful", "after the deformation"),
        ({"best_random": 0.65}, "doubtful", "0.650 against 0.600"),
        ({"windows": MINIMUM_WINDOWS - 1.0, "pose": 0.1}, "doubtful", "too little to judge"),
        ({"overlap": 0.1}, "doubtful", "10 % of the smaller one"),
        ({"windows": MINIMUM_WINDOWS - 1.0, "stretch": 14.0}, "failed", "factor of 14.0; check the voxel sizes and units"),
        ({"stretch": 4.0}, "failed", "factor of 4.0; check the voxel sizes and units"),
        ({"stretch": 1.6}, "doubtful", "factor of 1.6; check the voxel sizes and units"),
        ({"pose": 0.1, "in_place": 0.1, "pose_chance": 0.3, "edges": 0.3, "edge_rival": 0.26}, "ok", "0.300 against 0.260"),
        ({"pose": 0.1, "in_place": 0.1, "pose_chance": 0.3, "edges": 0.3, "edge_rival": 0.29}, "doubtful", "10 %"),
        ({"pose": 0.6, "edges": 0.3, "edge_rival": 0.4}, "doubtful", "0.400 against 0.300"),
        ({"affine_information": 1.2, "information": 1.09}, "doubtful", "from 1.200 to 1.090; where contrasts differ"),
        ({"affine_information": 1.2, "information": 1.12}, "ok", "80 %"),
    ],
)
def test_each_reason(change, expected, word):
    verdict = judge(replace(GOOD, **change), [])
    assert verdict.status == expected
    assert word in verdict.line()


def test_folds_tears_and_levels_that_ended_early_count():
    assert judge(GOOD, [], {"folded_percent": 2.0}).status == "doubtful"
    assert judge(GOOD, [], {"extreme_percent": 1.9}).status == "ok"
    torn = judge(GOOD, [], {"extreme_percent": 3.0})
    assert torn.status == "doubtful"
    assert torn.reasons[0].startswith("3 % of the voxels shrink or grow by more than a factor of 3; smooth more, compare")
    levels = [{"stage": "rigid", "scale": 4, "stopped": "overlap"}]
    ended = judge(replace(GOOD, pose=0.6), levels)
    assert judge(GOOD, levels).status == "ok"
    assert ended.status == "doubtful"
    assert "scale 4" in ended.line()


def test_what_may_be_behind_a_wrong_pose_is_named():
    """Wrong voxel sizes and axes are seen by nobody who looks at shares of an image alone."""
    wrong = replace(GOOD, pose=0.1, in_place=0.1)
    assert judge(wrong, []).reasons[-1].startswith("if the images do show the same, look at their voxel sizes, units and axes")
    assert "--preset rigid" in judge(wrong, []).reasons[-1]
    searched = judge(wrong, [{"stage": "search", "scale": 1, "stopped": "iterations"}]).reasons
    assert "voxel sizes" in searched[-1]
    assert "--preset rigid" not in searched[-1]
    started = judge(wrong, [], started=True).reasons[-1]
    assert "('daskreg info' of both), and at whether the initial transform maps points of the fixed" in started
    for other in (judge(GOOD, [], started=True), judge(GOOD, [], {"folded_percent": 2.0}), judge(replace(GOOD, windows=3.0), [])):
        assert "voxel sizes" not in other.text()


def test_a_mask_that_leaves_little_is_named():
    """It may lie elsewhere, or be in another unit, which nothing else says."""
    wrong, little = replace(GOOD, pose=0.1, in_place=0.1), {"fixed": 0.021, "moving": 0.4}
    assert "and at the fixed mask, which leaves 2.1 % of its image, or begin" in judge(wrong, [], masks=little).reasons[-1]
    few = judge(replace(GOOD, windows=3.0), [], masks=little).reasons
    assert few[-1].startswith("look at the fixed mask, which leaves 2.1 % of its image")
    for other in (judge(GOOD, [], masks=little), judge(wrong, [], masks={"fixed": 0.3})):
        assert "mask" not in other.text()


def test_a_verdict_is_kept_in_provenance():
    states = np.random.default_rng(0).integers(0, 3, (7, 5, 6)).astype(np.uint8)
    verdict = replace(judge(GOOD, []), matched=MatchMap(states, (2, 3, 4)).as_dict())
    back = Verdict.of_record(verdict.as_dict())
    assert (back.status, back.reasons) == (verdict.status, verdict.reasons)
    found = MatchMap.of_record(back.matched)
    np.testing.assert_array_equal(found.states, states)
    assert found.transpose((2, 0, 1)).factors == (4, 2, 3)
    assert Verdict.of_record(None) is None
    with pytest.raises(Unreadable, match="damaged"):
        MatchMap.of_record({**verdict.matched, "states": "AAAA"})

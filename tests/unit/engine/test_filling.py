"""What a search took for filling has no part in the linear stages after it."""

from functools import partial

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, map_coordinates

from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Rigid, Search
from daskreg.engine.edge_images import part_of, without_filling
from daskreg.engine.filling import Filling, leave_out_beside
from daskreg.engine.images import Image, downsample
from daskreg.engine.linear import LinearLoss, run_linear
from daskreg.engine.pose_search import PoseSearch
from daskreg.engine.report import LevelReport, Watch
from daskreg.engine.shared_out import SharedOut
from daskreg.grid import Grid, Region
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MSE, NGF
from daskreg.transforms.linear import linear_about, transform_points, translation
from tests.phantoms import blobs, rotation
from tests.unit.engine.spread import Registration, assert_same_bits

SHAPE = (24, 20, 22)
FULL, HALF = (1, 1, 1), (2, 2, 2)  # shrink factors
LOSSES = {"mse": MSE(), "lncc": LNCC(radius=1), "ngf": NGF(eta=0.05)}


def after_a_search(filling):
    return [LevelReport("search", 1, SHAPE, detail={"filling": filling})]


class Filled(Registration):
    """As if a search before had left filling out."""

    def rank(self, comm, *given, **more):
        made = super().rank(comm, *given, **more)
        made.reports = after_a_search([None, 0.0])
        return made


def test_voxels_of_filling_are_out_of_the_domain():
    fixed = np.full(SHAPE, 0.5, np.float32)
    fixed[:, :, 12:] = 0.25
    moving = np.full(SHAPE, 0.7, np.float32)
    moving[:6] = 0.1
    images = Image.whole(fixed, Grid(SHAPE)), Image.whole(moving, Grid(SHAPE))
    stage = Rigid(similarity=MSE(), scales=(1,), iterations=(5,))
    level = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0][0]
    count = [
        LinearLoss(stage, level, images, SingleRank(), filling).value(np.eye(4))[1]
        for filling in (Filling(), Filling(fixed=0.25), Filling(moving=0.1), Filling(0.25, 0.1))
    ]
    assert count == [24 * 20 * 22, 24 * 20 * 12, 18 * 20 * 22, 18 * 20 * 12]


def test_voxels_beside_filling_are_not_held():
    """Interpolation, and a resampling before, mix two voxels with it, which makes edges."""
    moving = blobs(SHAPE, 2) + np.float32(0.1)
    moving[6:12, 4:9] = 0
    images = Image.whole(blobs(SHAPE, 1), Grid(SHAPE)), Image.whole(moving, Grid(SHAPE))
    counts = []
    for loss in (MSE(), NGF()):
        stage = Rigid(similarity=loss, scales=(1,), iterations=(5,))
        level = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0][0]
        counts.append(LinearLoss(stage, level, images, SingleRank(), Filling(moving=0.0)).hold(np.eye(4)))
    beside = moving == 0
    for axis in (0, 1):
        for step in (-2, 2):
            beside |= np.roll(moving == 0, step, axis)
    left_out = binary_dilation(beside, np.ones((3, 3, 3)))
    read = binary_dilation(left_out)  # differences of these read voxels that are left out
    assert counts == [(~beside).sum(), (~read).sum()]


def test_no_voxel_is_held_that_an_interpolation_mixes_with_filling():
    """Also where filling before a face is thinner than a voxel, and the moving image's voxels are larger than the fixed one's."""
    grid = Grid(SHAPE, (2.0, 2.0, 2.0), (-0.4, 0.3, 0.7))
    moving = blobs(SHAPE, 2) + np.float32(0.1)
    moving[0], moving[:, :, 15:] = 0, 0
    fixed = Grid((40, 38, 42), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    images = Image.whole(blobs(fixed.shape, 1), fixed), Image.whole(moving, grid)
    stage = Rigid(similarity=MSE(), scales=(1,), iterations=(5,))
    level = make_plan(fixed, grid, Config(stages=(stage,))).levels[0][0]
    loss = LinearLoss(stage, level, images, SingleRank(), Filling(moving=0.0))
    loss.hold(world := linear_about(grid.center, rotation((7, -4, 5))))
    held = np.isfinite(loss.outside)
    at = grid.to_index(transform_points(world, fixed.to_world(np.argwhere(held))))
    mixed = map_coordinates((moving == 0).astype(float), at.T, order=1, mode="nearest")
    assert held.mean() > 0.3
    assert mixed.max() < 1e-6


def test_a_search_reports_the_box_around_what_is_no_filling():
    """Without the voxels beside filling."""
    moving = np.zeros((48, 40, 44), np.float32)
    moving[12:30, 8:32, 20:40] = blobs((18, 24, 20), 2) + np.float32(0.1)
    noise = np.random.default_rng(0).random(moving.shape).astype(np.float32)
    images = Image.whole(noise, Grid(moving.shape)), Image.whole(moving, Grid(moving.shape))
    found = PoseSearch(Search(rotations="fine"), images, np.eye(4), SharedOut(SingleRank()), Watch()).left_out()
    assert found == Filling(None, 0.0, (None, Region((13, 9, 21), (29, 31, 39))))


@pytest.mark.parametrize(("loss", "probes"), [("mse", [0, 6]), ("lncc", [0, 6]), ("ngf", [6, 6])])
def test_coarser_levels_leave_out_filling_alone_where_no_edges_are_compared(loss, probes):
    """Two of their voxels around it are many of what is left."""
    moving = blobs((48, 40, 44), 2) + np.float32(0.1)
    moving[:16] = 0
    images = Image.whole(blobs((48, 40, 44), 1), Grid((48, 40, 44))), Image.whole(moving, Grid((48, 40, 44)))
    stage = Rigid(similarity=LOSSES[loss], scales=(2, 1), iterations=(5, 5))
    levels = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0]
    losses = [LinearLoss(stage, level, images, SingleRank(), Filling(moving=0.0)) for level in levels]
    assert [len(loss.probes(np.eye(4))) for loss in losses] == probes
    if loss == "mse":
        known = [loss.value(np.eye(4))[1] for loss in losses]
        assert [loss.hold(np.eye(4)) for loss in losses] == [known[0], known[1] - 2 * 40 * 44]


@pytest.mark.parametrize("loss", ["mse", "ngf"])
def test_filling_does_not_pull(loss):
    """A block in zeros: what is aligned is its content, not its faces."""
    fixed = blobs((32, 30, 34), 4) + np.float32(0.2)
    moving = np.zeros_like(fixed)
    moving[8:26, 7:24, 8:28] = fixed[6:24, 8:25, 5:25]
    truth = translation(np.array([2.0, -1.0, 3.0]))
    stage = Affine(similarity=LOSSES[loss], scales=(1,), iterations=(60,))
    images = Image.whole(fixed, Grid(fixed.shape)), Image.whole(moving, Grid(fixed.shape))
    level = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0][0]
    start, make_loss = truth @ translation(np.array([0.4, -0.3, 0.3])), partial(LinearLoss, filling=Filling(moving=0.0))
    found, _ = run_linear(stage, level, images, start, SingleRank(), Watch(), make_loss=make_loss)
    corners = np.argwhere(np.ones((2, 2, 2))) * np.array([17, 16, 19]) + np.array([6, 8, 5])
    apart = transform_points(found, corners) - transform_points(truth, corners)
    assert np.linalg.norm(apart, axis=1).max() < 0.05


@pytest.mark.parametrize("own", [slice(0, 80), slice(1, 79), slice(2, 75)])
def test_what_lies_beside_is_left_out_in_own_planes(own):
    left_out = np.random.default_rng(0).random((80, 9, 8)) < 0.02
    outside = np.where(left_out, np.float32(np.nan), np.float32(0))
    leave_out_beside(outside, own)
    expected = left_out.copy()
    expected[own] = binary_dilation(left_out, np.ones((3, 3, 3)))[own]
    np.testing.assert_array_equal(np.isnan(outside), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_on_any_number_of_ranks_and_out_of_memory(loss):
    recipe = Config(stages=(Rigid(similarity=LOSSES[loss], scales=(2, 1), iterations=(5, 5), tolerance=0),))
    fixed, moving = blobs(SHAPE, 1), np.array(blobs(SHAPE, 2))
    moving[:, :, 15:], moving[15:18, 3:], moving[:4, :9] = 0, 0, 0
    expected = Filled(fixed, moving, recipe).run(1)
    assert expected.affine.tobytes() != Registration(fixed, moving, recipe).run(1).affine.tobytes()
    assert_same_bits(Filled(fixed, moving, recipe).run(3), expected)
    assert_same_bits(Filled(fixed, moving, recipe, state="host", slab=5, stored=(FULL, HALF)).run(1), expected)


@pytest.mark.parametrize("factors", [(2, 4, 3), (1, 2, 4)])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_a_search_compares_no_voxel_that_is_much_mixed_with_filling(factors, offset):
    """On shrunk axes the Gaussian reaches a voxel and a half, and logarithms make zeros differ by more than the contrast."""
    inner = tuple(slice(12 + offset, 44 + offset) for _ in range(3))
    voxels, share = np.zeros((56, 60, 58), np.float32), np.ones((56, 60, 58), np.float32)
    voxels[inner], share[inner] = 0.7 + 0.3 * blobs((32, 32, 32), 3), 0
    part = without_filling(part_of(Image.whole(voxels, Grid(voxels.shape, (12 / np.array(factors)))), 12.0))
    assert part.factors == factors
    mixed = downsample(share, factors)
    assert mixed[part.inside].max() < 0.17
    assert part.inside.sum() > 0.4 * 32**3 / np.prod(factors)

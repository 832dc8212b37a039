"""What a search took for filling has no part in the linear stages after it."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from daskreg.comm import SingleRank
from daskreg.config import Config, Rigid
from daskreg.engine.filling import Filling
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss, leave_out_beside
from daskreg.engine.report import LevelReport
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MSE, NGF
from tests.phantoms import blobs
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


def test_voxels_beside_filling_are_not_held_where_the_similarity_reads_neighbours():
    """Interpolation mixes them with it, which makes edges."""
    moving = blobs(SHAPE, 2) + np.float32(0.1)
    moving[6:12, 4:9] = 0
    images = Image.whole(blobs(SHAPE, 1), Grid(SHAPE)), Image.whole(moving, Grid(SHAPE))
    counts = []
    for loss in (MSE(), NGF()):
        stage = Rigid(similarity=loss, scales=(1,), iterations=(5,))
        level = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0][0]
        counts.append(LinearLoss(stage, level, images, SingleRank(), Filling(moving=0.0)).hold(np.eye(4)))
    beside = 8 * 7  # of 6 x 5 along z and y
    read = 10 * 7 + 8 * 9 - beside  # differences of these read voxels that are left out
    assert counts == [22 * (24 * 20 - 6 * 5), 22 * (24 * 20 - read)]


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
    moving[:, :, 15:] = 0
    expected = Filled(fixed, moving, recipe).run(1)
    assert expected.affine.tobytes() != Registration(fixed, moving, recipe).run(1).affine.tobytes()
    assert_same_bits(Filled(fixed, moving, recipe).run(3), expected)
    assert_same_bits(Filled(fixed, moving, recipe, state="host", slab=5, stored=(FULL, HALF)).run(1), expected)

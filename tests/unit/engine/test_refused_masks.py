"""Masks that leave nothing to register are refused with numbers; others are taken as they are."""

import numpy as np
import pytest

from daskreg import Affine, Deformable, Moments, NoOverlap, Rigid, Search, VoxelError
from daskreg.comm import SingleRank
from daskreg.config import Config
from daskreg.engine.images import Image
from daskreg.engine.masks import require_meeting_masks, require_voxels
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.similarity import MSE
from tests.phantoms import blobs

GRID = Grid((40, 36, 32), unit="mm")
RIGID = Rigid(similarity=MSE(), scales=(4, 2), iterations=(2, 2))


def slab(start, stop):
    mask = np.zeros(GRID.shape, np.float32)
    mask[start:stop] = 1
    return mask


def images(fixed, moving):
    return tuple(Image.whole(blobs(GRID.shape).astype(np.float32), GRID, mask) for mask in (fixed, moving))


def require(fixed, moving, *stages, world=None, searched=False):
    given = images(fixed, moving)
    plan = make_plan(GRID, GRID, Config(stages=stages or (RIGID,)), masks=(fixed is not None, moving is not None))
    require_voxels(plan, given, SingleRank())
    require_meeting_masks(plan, given, np.eye(4) if world is None else world, SingleRank(), searched=searched)


@pytest.mark.parametrize(
    "masks", [(slab(0, 10), slab(30, 40)), (slab(0, 5), slab(20, 40))], ids=["at opposite ends", "ten planes apart"]
)
@pytest.mark.parametrize("stages", [(RIGID,), (Moments(), RIGID), (Deformable(similarity=MSE(), scales=(2,), iterations=(2,)),)])
def test_masks_that_do_not_meet_are_refused(masks, stages):
    with pytest.raises(NoOverlap, match=r"the masks do not overlap: .* they share 0 voxels .* \(fixed image: \d+ voxels;"):
        require(*masks, *stages)


def test_a_mask_and_an_image_that_do_not_meet_are_refused():
    away = np.eye(4)
    away[0, 3] = 38  # the fixed mask's planes 30 to 39 fall behind the moving image
    with pytest.raises(NoOverlap, match="moving image: no mask"):
        require(slab(30, 40), None, world=away)


def test_a_search_may_bring_masks_together_but_has_to():
    masks = slab(0, 10), slab(30, 40)
    require(*masks, Search(), RIGID)
    shift = np.eye(4)
    shift[0, 3] = 30
    require(*masks, Search(), RIGID, world=shift, searched=True)
    with pytest.raises(NoOverlap, match="under the map that was found first"):
        require(*masks, Search(), RIGID, searched=True)


@pytest.mark.parametrize(("stage", "needed"), [(RIGID, 60), (Affine(scales=(2,), iterations=(2,)), 120)])
@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_mask_of_one_voxel_is_refused(stage, needed, role):
    one = np.zeros(GRID.shape, np.float32)
    one[20, 18, 16] = 1
    masks = (one, None) if role == "fixed" else (None, one)
    with pytest.raises(VoxelError, match=f"the mask of the {role} image has 1 voxel above 0; at least {needed} are needed"):
        require(*masks, stage)


@pytest.mark.parametrize("masks", [(slab(0, 20), slab(10, 40)), (slab(5, 30), None), (None, slab(0, 40)), (None, None)])
def test_masks_that_meet_are_taken(masks):
    require(*masks)

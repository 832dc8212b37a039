"""Images of one to three planes: the search and the stages after it find them, as they find thicker ones."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from daskreg.comm import SingleRank
from daskreg.config import Config, Rigid
from daskreg.engine.edge_images import ComparedPart, edge_field, tensor_field
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.similarity import MSE, NGF
from daskreg.transforms.linear import transform_points, translation
from daskreg.workflows.presets import PRESETS

EDGES = Rigid(similarity=NGF(eta=0.05), scales=(1,), iterations=(20,))


def texture(shape, seed=0):
    fine, coarse = (gaussian_filter(np.random.default_rng(seed).standard_normal(shape), s) for s in (2, 5))
    both = fine / fine.std() + coarse / coarse.std()
    return ((both - both.min()) / np.ptp(both) + 0.2).astype(np.float32)


def shifted(shape, shift, moving_planes=None):
    """Two parts of a texture, the second with other voxels by a shift, whole numbers; and the map between them."""
    whole = texture((24, shape[1] + 32, shape[2] + 32))
    n = moving_planes or shape[0]
    f, m = (12 - shape[0] // 2, 16, 16), (12 - n // 2, 16 + shift[1], 16 + shift[2])
    fixed = whole[f[0] : f[0] + shape[0], f[1] : f[1] + shape[1], f[2] : f[2] + shape[2]]
    moving = whole[m[0] : m[0] + n, m[1] : m[1] + shape[1], m[2] : m[2] + shape[2]]
    images = tuple(Image.whole(np.ascontiguousarray(v), Grid(v.shape)) for v in (fixed, moving))
    return images, translation(np.subtract(f, m).astype(float))


@pytest.mark.parametrize("make", [tensor_field, edge_field])
@pytest.mark.parametrize("planes", [1, 2, 3, 4])
@pytest.mark.parametrize("voxel", [1.1, 1.5, 2.0, 3.1, 7.9])
def test_edges_are_known_on_lattices_of_any_voxels(make, planes, voxel):
    voxels = texture((planes, 40, 40))
    field = make(ComparedPart(Grid(voxels.shape), voxels, np.ones(voxels.shape, bool)), voxel)
    known = field.values[-1] > 0
    assert known.any()
    assert np.abs(field.values[:-1, known]).max() > 0.1


@pytest.mark.parametrize(("fixed", "moving"), [(2, 2), (24, 3)])
def test_differences_of_few_planes_are_compared_a_little_beside_them(fixed, moving):
    images, world = shifted((fixed, 40, 40), (0, 3, -2), moving)
    level = make_plan(images[0].grid, images[1].grid, Config(stages=(EDGES,))).levels[0][0]
    loss = LinearLoss(EDGES, level, images, SingleRank())
    assert loss.value(world @ translation(np.array([0.1, 0, 0])))[1] > 1000


def test_thin_images_compared_voxel_by_voxel_are_known_between_the_outermost_centres_as_others():
    images, world = shifted((2, 40, 40), (0, 3, -2))
    stage = EDGES.model_copy(update={"similarity": MSE()})
    level = make_plan(images[0].grid, images[1].grid, Config(stages=(stage,))).levels[0][0]
    assert LinearLoss(stage, level, images, SingleRank()).value(world @ translation(np.array([0.1, 0, 0])))[1] < 40 * 40


@pytest.mark.slow
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_a_thin_slab_is_found(planes):
    images, world = shifted((planes, 160, 160), (0, 9, -12))
    plan = make_plan(images[0].grid, images[1].grid, PRESETS["rigid"])
    outcome = Rank(plan, images, np.eye(4), SingleRank(), Watch()).run()
    corners = images[0].grid.corners()
    assert np.linalg.norm(transform_points(outcome.affine, corners) - transform_points(world, corners), axis=1).mean() < 0.2
    assert all(level.stopped != "no overlap" for level in outcome.levels)

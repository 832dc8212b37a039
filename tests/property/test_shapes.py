"""Extreme shapes: one voxel thick, smaller than a window or a filter, different along every axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Deformable
from daskreg.engine.images import Image, normalise
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.kernels.sampling.cpu import EXTENT, sample
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE
from daskreg.transforms.linear import index_map, linear_part, to_fixed_point

SHAPES = st.tuples(*[st.integers(1, 9)] * 3).filter(lambda shape: np.prod(shape) > 1)


def registered(fixed_shape, moving_shape, similarity):
    rng = np.random.default_rng(0)
    stages = [
        Affine(similarity=similarity, scales=(2,), iterations=(2,)),
        Deformable(similarity=similarity, scales=(2, 1), iterations=(2, 2)),
    ]
    grids = [Grid(fixed_shape), Grid(moving_shape)]
    plan = make_plan(*grids, Config.of_stages(stages))
    images = []
    for grid in grids:
        voxels = rng.random(grid.shape, np.float32)
        normalise(voxels, plan.config, SingleRank(), "an image")
        images.append(Image.whole(voxels, grid))
    outcome = Rank(plan, tuple(images), np.eye(4), SingleRank(), Watch()).run()
    return outcome, resampled(outcome, *images)


def resampled(outcome, fixed, moving):
    """The moving image resampled by the whole transform, 0 out of the domain."""
    matrix, moved = index_map(outcome.affine, fixed.grid, moving.grid), np.empty(fixed.grid.shape, np.float32)
    place = (0, to_fixed_point(matrix), linear_part(matrix))
    sample(moved.shape, *place, outcome.displacement.array, 0, moving.grid.shape[0], EXTENT, moving.voxels, moved)
    return np.nan_to_num(moved, nan=0.0)


@pytest.mark.parametrize("similarity", [MSE(), LNCC(), MI()], ids=["mse", "lncc", "mi"])
@settings(max_examples=6, deadline=None)
@given(fixed=SHAPES, moving=SHAPES)
def test_any_shape_gives_a_finite_transform_on_the_fixed_grid(similarity, fixed, moving):
    outcome, moved = registered(fixed, moving, similarity)
    assert moved.shape == fixed
    assert outcome.displacement.array.shape == (3, *fixed)
    assert np.isfinite(outcome.displacement.array).all()
    assert np.isfinite(outcome.affine).all()
    assert np.isfinite(moved).all()

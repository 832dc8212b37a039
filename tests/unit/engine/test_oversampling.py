"""A moving image sampled more finely than a coarse fixed level: as smooth once interpolated, on any ranks, in any memory."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from daskreg import Config, Deformable
from daskreg.comm import SingleRank
from daskreg.engine.images import Image
from daskreg.errors import ConfigError
from daskreg.grid import Grid, Span, level_factors, matching_sigmas
from daskreg.kernels.smoothing.downsampling import downsample_table
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MSE
from tests.phantoms import blobs, rotation
from tests.unit.engine import spread
from tests.unit.engine.spread import Registration, assert_same_bits

SHAPE = (24, 20, 22)


def stage(oversampling: int, **given: object) -> Deformable:
    """Two coarse levels, the moving image of the second at full resolution, and the finest one."""
    usual = {"scales": (4, 2, 1), "iterations": (4, 4, 2), "tolerance": 0, "similarity": LNCC(radius=1)}
    return Deformable(**{**usual, **given}, moving_oversampling=oversampling)


@pytest.mark.parametrize("masked", [False, True])
def test_the_result_depends_neither_on_ranks_nor_on_where_images_are(masked):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2)) if masked else (None, None)
    images, recipe = (blobs(SHAPE, 1), blobs(SHAPE, 2)), Config(stages=(stage(2),))
    expected = Registration(*images, recipe, masks).run(1)
    usual = Registration(*images, Config(stages=(stage(1),)), masks).run(1)
    assert np.abs(expected.displacement - usual.displacement).max() > 0.01
    for ranks, residency in [(2, "window"), (3, "ring"), (3, "replicate")]:
        assert_same_bits(Registration(*images, recipe, masks).run(ranks, residency), expected)
    for kept in ([(1, 1, 1)], [(1, 1, 1), (2, 2, 2)]):
        out = Registration(*images, recipe, masks, state="host", slab=6, stored=kept)
        assert_same_bits(out.run(1), expected)


@pytest.mark.parametrize(("spacing", "scale", "oversampling"), [(1.0, 2, 2), (1.0, 4, 2), (0.7, 4, 3), (1.3, 8, 4)])
def test_its_level_is_as_smooth_as_the_fixed_one_once_interpolated(spacing, scale, oversampling):
    """Both variances, in world units, along an axis; interpolation adds a sixth of a squared voxel in the mean."""
    fixed, moving = Grid((96,) * 3), Grid((120,) * 3, (spacing,) * 3)
    f, m = level_factors(fixed, moving, scale, oversampling)
    assert m[0] < level_factors(fixed, moving, scale)[1][0]

    def variance(factor, sigma, size):
        first, weights = downsample_table(96, factor, sigma)
        at = first[48 // factor] + np.arange(weights.shape[1])
        mean = weights[48 // factor] @ at
        return weights[48 // factor] @ (at - mean) ** 2 * size**2

    sigma = matching_sigmas(fixed, moving, (f, m))[0]
    interpolated = variance(m[0], sigma, spacing) + (m[0] * spacing) ** 2 / 6
    assert interpolated == pytest.approx(variance(f[0], None, 1.0), rel=0.03)


@pytest.mark.parametrize("oversampling", [1, 2, 4])
def test_ranks_hold_the_planes_that_the_gaussian_reads(oversampling):
    grid = Grid((130, 40, 40))
    levels = make_plan(grid, grid, Config(stages=(stage(oversampling, scales=(16, 8, 4, 2, 1), iterations=(1,) * 5),))).levels[0]
    for level in levels[:-1]:
        sigma = None if level.moving_sigmas is None else level.moving_sigmas[0]
        factor = level.moving_factors[0]
        first, weights = downsample_table(130, factor, sigma)
        middle = len(first) // 2
        below, above = middle * factor - first[middle], first[middle] + weights.shape[1] - (middle + 1) * factor
        assert max(below, above) <= level.moving_rim
    assert levels[-1].moving_rim == 0


@pytest.mark.parametrize(("ranks", "stored"), [(1, ()), (1, ((1, 1, 1), (2, 2, 2))), (3, ())])
def test_an_image_in_place_stays_there(ranks, stored, monkeypatch):
    """Bit for bit, as without: on its own voxels nothing is interpolated."""
    monkeypatch.setattr(spread, "grids", lambda fixed, moving: (Grid(fixed), Grid(moving)))
    state = "host" if stored else "device"
    case = Registration(blobs(SHAPE, 1), blobs(SHAPE, 1), Config(stages=(stage(2),)), state=state, slab=6, stored=stored)
    assert not case.run(ranks, "window").displacement.any()


def test_a_turned_image_moves_less():
    """Interpolated on one side, at its true pose: what moves is a fault of the interpolation."""
    fixed = blobs((44, 44, 44), 3)
    turn, middle = rotation((8, -11, 14)), (np.array(fixed.shape) - 1) / 2
    moving = affine_transform(fixed, turn.T, middle - turn.T @ middle, order=3).astype(np.float32)
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = turn, middle - turn @ middle
    moved = []
    for oversampling in (1, 2):
        only = stage(oversampling, scales=(2,), iterations=(25,), similarity=LNCC(radius=2))
        moved.append(_displacement(fixed, moving, only, start))
    assert moved[1] < 0.6 * moved[0]


def _displacement(fixed, moving, only, start):
    from daskreg.engine.rank import Rank
    from daskreg.engine.report import Watch

    grid = Grid(fixed.shape)
    images = tuple(Image.whole(v / v.max(), grid) for v in (fixed, moving))
    made = Rank(make_plan(grid, grid, Config(stages=(only,))), images, start, SingleRank(), Watch()).run()
    u = np.asarray(made.displacement.array)[:, 8:-8, 8:-8, 8:-8]
    return np.linalg.norm(u, axis=0).mean()


def test_a_smoothed_copy_is_given_up_at_full_resolution():
    image = Image.whole(blobs(SHAPE, 1), Grid(SHAPE))
    wanted = [Span(0, SHAPE[0])]
    smooth, _ = image.gather_level((1, 1, 1), wanted, SingleRank(), sigmas=(0.9, 0.9, 0.9))
    assert smooth.std() < image.voxels.std()
    assert len(image._levels) == 1
    np.testing.assert_array_equal(image.gather_level((1, 1, 1), wanted, SingleRank())[0], image.voxels)
    assert not image._levels


def test_one_changes_nothing_and_the_finest_level_never_is():
    grid = Grid((48, 44, 40))
    levels = [make_plan(grid, grid, Config(stages=(stage(k, similarity=MSE()),))).levels[0] for k in (1, 2)]
    assert all(level.moving_sigmas is None for level in (*levels[0], levels[1][-1]))
    assert [level.moving_factors[0] for level in levels[1]] == [1 if level.scale < 4 else 2 for level in levels[1]]


@pytest.mark.parametrize("oversampling", [0, 5, 1.5])
def test_a_number_out_of_range_is_refused(oversampling):
    with pytest.raises(ConfigError, match="moving_oversampling"):
        Config.parse({"stages": [{"stage": "deformable", "moving_oversampling": oversampling}]})

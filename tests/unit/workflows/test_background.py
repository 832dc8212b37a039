"""Stored background: what fills a mosaic counts for nothing, in any chunks; on any number of workers in ``test_workers``."""

import logging
import math

import dask.array as da
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

import daskreg
from daskreg import MSE, Config, ConfigError, Grid, NoOverlap, Rigid, VoxelError
from daskreg.cluster.image_reader import read_images
from daskreg.comm import SingleRank
from daskreg.engine.background import MARGIN, Background, leave_out
from daskreg.planning import make_plan
from daskreg.storage import Volume
from daskreg.workflows.background import backgrounds, constant_filling, parse_background

GRID = Grid((40, 36, 32), unit="mm")
pytestmark = pytest.mark.usefixtures("without_verdicts")
STAGE = Rigid(similarity=MSE(), scales=(2, 1), iterations=(30, 20))


def texture(shift=0):
    """An object that fills the field of view, from 1 up, moved along y by whole voxels."""
    wide = gaussian_filter(np.random.default_rng(4).standard_normal((44, 48, 36)), 3)
    wide = 500 + 400 * wide / np.abs(wide).max()
    return wide[2:42, 6 + shift : 42 + shift, 2:34].astype(np.float32)


def filled(voxels, value):
    """With corners that were not recorded."""
    voxels = voxels.copy()
    voxels[:14, :, :16] = voxels[30:, 20:, :] = value
    return voxels


def volume(voxels, chunks=16):
    return Volume(da.from_array(voxels, chunks=chunks), GRID, "mosaic")


# --- which voxels ---------------------------------------------------------------------------------------------------------


def areas(same):
    """An opening by a cube of 3 voxels whose centre is in the image."""
    cube = np.ones((3, 3, 3))
    return binary_dilation(binary_erosion(same, cube, border_value=1), cube)


def beside(same):
    """The same with the voxels beside, which a resampling mixes."""
    return binary_dilation(areas(same), np.ones((3, 3, 3)))


@pytest.mark.parametrize("value", [0.0, -1024.0])
def test_voxels_of_a_value_are_background_and_those_beside_its_areas(value):
    voxels = filled(texture(), value)
    voxels[20, 20, 20] = value
    known = Background(value).known(voxels)
    np.testing.assert_array_equal(known, ~(beside(voxels == value) | (voxels == value)))
    assert known[20, 20, 21]


def test_nothing_is_mixed_with_nan():
    voxels = filled(texture(), math.nan)
    voxels[20, 20, 20] = math.nan
    np.testing.assert_array_equal(Background(math.nan).known(voxels), ~np.isnan(voxels))
    np.testing.assert_array_equal(Background(math.nan, areas=True).known(voxels), ~areas(np.isnan(voxels)))


def test_a_resampled_image_loses_its_rim_of_mixed_voxels():
    """Half of its outermost voxels' values come from beyond: edges that no object has."""
    shifted = np.pad(texture(), 4)
    shifted = (shifted[:-1] + shifted[1:]) / 2
    known = Background(0.0, areas=True).known(shifted)
    assert shifted[known].min() >= texture().min()
    assert known.sum() == 39 * 34 * 30


def test_areas_are_an_opening_and_what_is_beside_them():
    voxels = filled(texture(), 0)
    voxels[np.random.default_rng(0).random(voxels.shape) < 0.05] = 0
    np.testing.assert_array_equal(Background(0.0, areas=True).known(voxels), ~beside(voxels == 0))


@pytest.mark.parametrize("cut", [1, 13, 14, 15, 29, 30])
def test_a_block_that_sees_its_margin_knows_what_the_whole_image_does(cut):
    voxels, background = filled(texture(), 7), Background(7.0, areas=True)
    whole = background.known(voxels)
    np.testing.assert_array_equal(background.known(voxels[: cut + MARGIN])[:cut], whole[:cut])
    after = background.known(voxels[max(cut - MARGIN, 0) :])
    np.testing.assert_array_equal(after[min(cut, MARGIN) :], whole[cut:])


# --- which value ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -32768.0, math.nan])
@pytest.mark.parametrize("chunks", [(40, 36, 32), (7, 9, 32), (5, 5, 5)])
def test_the_filling_is_found_on_the_faces_whatever_the_chunks(value, chunks):
    found, share = constant_filling(volume(filled(texture(), value), chunks))
    np.testing.assert_equal(found, value)
    assert 0.1 < share < 0.9


def test_noise_and_single_voxels_are_no_filling():
    dark = np.random.default_rng(1).integers(0, 4, GRID.shape).astype(np.float32)  # a fourth of it is 0
    assert constant_filling(volume(dark)) is None
    assert constant_filling(volume(texture())) is None


def test_what_was_found_is_said(caplog):
    config = Config(stages=(STAGE,), fixed_background="auto", moving_background="auto")
    with caplog.at_level(logging.INFO, "daskreg"):
        found = backgrounds(config, volume(filled(texture(), 3)), volume(texture()))
    assert found == (Background(3.0, areas=True), None)
    assert "background: 3 fills" in caplog.text
    assert "no constant filling was found on the faces of the moving image mosaic" in caplog.text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("auto", ("auto", "auto")), ("nan", ("nan", "nan")), ("-1024,none", (-1024, None)), ((0, "auto"), (0, "auto")), (5, (5, 5))],
)
def test_one_choice_is_for_both_images_and_two_are_for_each(given, wanted):
    fields = parse_background(given)
    config = Config(stages=(STAGE,)).model_copy(update=fields)
    assert (config.fixed_background, config.moving_background) == wanted
    assert Config.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("bad", ["black", "inf", "1,2,3", [], True, "0,black", 1e40])
def test_a_choice_that_is_none_is_refused(bad):
    with pytest.raises(ConfigError, match="background is"):
        parse_background(bad)


# --- what it does ---------------------------------------------------------------------------------------------------------


def read(voxels, choice, mask=None, **config):
    plan = make_plan(GRID, GRID, Config(stages=(STAGE,), fixed_background=choice, **config))
    fixed, other = volume(voxels), volume(texture())
    found = backgrounds(plan.config, fixed, other)
    return read_images(plan, fixed, other, (mask, None), SingleRank(), "cpu", found)[0]


@pytest.mark.parametrize("value", [-32768.0, 0.0, math.nan])
def test_background_has_weight_0_and_no_part_in_the_intensities(value):
    """The range and the percentiles are those of the other voxels, in whatever value the filling is."""
    voxels = filled(texture(), value)
    image = read(voxels, "nan" if math.isnan(value) else value, percentiles=(1, 99))
    known = ~np.isnan(voxels) if math.isnan(value) else ~beside(voxels == value)
    np.testing.assert_array_equal(image.mask, known)
    low, high = np.percentile(voxels[known], [1, 99])
    width = (voxels[known].max() - voxels[known].min()) / 4096
    inside = image.voxels[known]
    np.testing.assert_allclose(inside, (voxels[known] - low) / (high - low), atol=4 * width / (high - low))
    assert image.left_out == (~known).sum()


def test_a_given_mask_is_multiplied():
    half = np.zeros(GRID.shape, np.float32)
    half[:, :18] = 0.5
    voxels = filled(texture(), 0)
    image = read(voxels, "auto", volume(half))
    np.testing.assert_array_equal(image.mask, (half > 0) & ~beside(voxels == 0))


def test_an_image_that_is_all_background_is_refused():
    with pytest.raises(VoxelError, match="mosaic is background everywhere"):
        read(np.full(GRID.shape, 5, np.float32), 5)


def test_leaving_out_replaces_by_the_least_other_value():
    voxels = np.array([[[-9.0, 2, 3], [4, -9, 6]]], np.float32)
    count = leave_out(voxels, Background(-9.0).known(voxels), slice(0, 1), SingleRank(), "it")
    assert count == 2
    np.testing.assert_array_equal(voxels, [[[2, 2, 3], [4, 2, 6]]])


def test_voxels_that_are_not_numbers_are_counted_without_the_background():
    voxels = filled(texture(), 0)
    voxels[20, 3, 3], voxels[20, 9, 9] = np.nan, -np.inf
    with pytest.raises(VoxelError, match="is NaN or infinite at 2 voxels;"):
        read(voxels, 0)


def register(tmp_path, fixed, moving, name="r", **options):
    images = [daskreg.open_volume(v, grid=GRID) for v in (fixed, moving)]
    return daskreg.register(*images, [STAGE], output=tmp_path / f"{name}.zarr", overwrite=True, **options)


def test_a_mosaic_is_found_where_it_was_moved_to(tmp_path, caplog):
    """The filling of both images stays in place, and holds the object back, while that moves by two voxels along y."""
    fixed, moving = filled(texture(2), 0), filled(texture(), 0)
    drawn = register(tmp_path, fixed, moving).affine[:3, 3]
    with caplog.at_level(logging.INFO, "daskreg"):
        found = register(tmp_path, fixed, moving, background="auto")
    np.testing.assert_allclose(found.affine[:3, 3], [0, 2, 0], atol=0.15)
    assert abs(drawn - [0, 2, 0]).max() > 0.3
    count = int(beside(fixed == 0).sum())
    assert found.report["left_out"] == [count, count]
    assert f"background: {count} voxels" in caplog.text
    same = register(tmp_path, fixed, moving, "same", background=0)
    assert same.affine.tobytes() == found.affine.tobytes()


def test_backgrounds_that_leave_nothing_in_common_are_refused(tmp_path):
    fixed, moving = texture(), texture()
    fixed[:26] = moving[14:] = 0
    with pytest.raises(NoOverlap, match="the masks do not overlap"):
        register(tmp_path, fixed, moving, background=0)

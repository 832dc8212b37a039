"""What a run's moved image holds where there is nothing of the moving one."""

import logging

import numpy as np
import pytest

import daskreg
from daskreg import Affine, Config, ConfigError, Grid
from daskreg.cluster.result_writer import cast
from tests.phantoms import blobs

FIXED = Grid((20, 18, 16), unit="mm")
MOVING = Grid((12, 18, 16), origin=(4, 0, 0), unit="mm")
STAGES = [Affine(scales=(1,), iterations=(0,))]


def register(tmp_path, moving, **options):
    fixed = daskreg.open_volume(blobs(FIXED.shape), grid=FIXED)
    return daskreg.register(
        fixed, daskreg.open_volume(moving, grid=MOVING), options.pop("config", STAGES), output=tmp_path / "r.zarr", **options
    )


def scan():
    return (1000 * blobs(FIXED.shape)[4:16] - 1024).astype(np.int16)


def test_air_is_around_a_scan_and_a_chosen_value_where_one_is(tmp_path, caplog):
    moving = scan()
    moving[::11, ::17, ::15] = -1024
    with caplog.at_level(logging.INFO, "daskreg"):
        found = register(tmp_path, moving)
    moved = found.moved.data.compute()
    assert (moved[:3] == -1024).all()
    np.testing.assert_array_equal(moved[5:14], moving[1:10])
    assert found.report["fill"] == -1024
    assert "outside of array voxels get -1024 (the smallest value at its corners)" in caplog.text
    chosen = register(tmp_path, moving, fill=-2000, overwrite=True)
    assert (chosen.moved.data.compute()[:3] == -2000).all()
    assert chosen.report["config"]["fill"] == -2000
    again = register(tmp_path, moving, config=Config(stages=tuple(STAGES), fill=-7), overwrite=True)
    assert (again.moved.data.compute()[:3] == -7).all()


def test_outside_of_positive_images_is_0_and_nan_where_it_is_asked_for(tmp_path):
    found = register(tmp_path, blobs(FIXED.shape)[4:16])
    assert (found.moved.data.compute()[:3] == 0).all()
    empty = register(tmp_path, blobs(FIXED.shape)[4:16], fill="nan", overwrite=True)
    assert np.isnan(empty.moved.data.compute()[:3]).all()
    assert empty.report["fill"] == "nan"


def test_a_value_that_the_moving_image_cannot_have_is_refused_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"fill is 0\.5, which array of type int16 cannot hold"):
        register(tmp_path, scan(), fill=0.5)
    with pytest.raises(ConfigError, match="fill"):
        Config(stages=tuple(STAGES), fill="air")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.uint8])
def test_a_fill_value_is_exact_in_every_type(dtype):
    fill = 2**24 + 1 if dtype in (np.int32, np.float64) else 77
    moved = np.array([[[np.nan, 1.6, 3.0]]], np.float32)
    inside = (2, 3) if np.issubdtype(dtype, np.integer) else (np.float32(1.6), 3)
    np.testing.assert_array_equal(cast(moved, np.dtype(dtype), fill), np.array([[[fill, *inside]]], dtype))

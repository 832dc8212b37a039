"""Images whose sizes cannot both be right are refused before anything is computed."""

import numpy as np
import pytest

from daskreg.cluster.rank_job import RankJob
from daskreg.config import Deformable
from daskreg.errors import ConfigError, UnitsError
from daskreg.grid import Grid, cut_orders
from daskreg.storage import open_volume
from daskreg.workflows.plan import plan

VOXELS = np.random.default_rng(0).random((20, 24, 28)).astype(np.float32)


def volume(spacing, unit="millimeter"):
    return open_volume(VOXELS, grid=Grid(VOXELS.shape, (spacing,) * 3, unit=unit))


@pytest.mark.parametrize("preset", ["brain", "rigid"])
def test_micrometres_for_millimetres(preset):
    for pair in (volume(2.0, "micrometer"), volume(2.0)), (volume(2.0), volume(2.0, "micrometer")):
        with pytest.raises(UnitsError, match=r"across and the moving one .* check their voxel sizes and units"):
            plan(*pair, preset)


def test_a_small_part_of_a_large_image_is_no_mistake():
    assert plan(volume(0.01), volume(2.0), "rigid").levels


def test_levels_are_told_in_the_order_of_the_stored_image():
    order = cut_orders(*(Grid((20, 24, 90)),) * 2)[0]
    planned = plan(open_volume(np.zeros((20, 24, 90), np.float32), grid=Grid((20, 24, 90))), volume(1.0, None), "brain")
    job = RankJob(planned, *(volume(1.0, None),) * 2, "run.zarr", order=order)
    assert order[0] == 2
    assert job.as_stored({"scale": 1, "shape": planned.fixed.shape}) == {"scale": 1, "shape": (20, 24, 90)}


def test_scales_from_fine_to_coarse_are_refused():
    with pytest.raises(ConfigError, match="write the coarsest first"):
        Deformable(scales=(2, 4))

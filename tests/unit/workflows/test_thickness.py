"""A moving image of one or two planes is refused where linear stages could not compare it with a thicker fixed one."""

import numpy as np
import pytest

from daskreg.config import Config, Deformable, Rigid
from daskreg.errors import GridError
from daskreg.grid import Grid
from daskreg.similarity import MSE
from daskreg.workflows.inputs import open_inputs, require_thickness
from daskreg.workflows.presets import PRESETS

TURNED = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
VOXELS = Config(stages=(Rigid(similarity=MSE(), scales=(1,), iterations=(20,)),))


@pytest.mark.parametrize("name", PRESETS)
def test_one_plane_under_a_thick_image_is_refused(name):
    images = np.zeros((24, 40, 40), np.float32), np.zeros((1, 40, 40), np.float32)
    with pytest.raises(GridError, match=r"has 1 plane, the fixed one 24.*Exchange them.*invert"):
        open_inputs(*images, name)
    assert open_inputs(*images[::-1], name).config == PRESETS[name]


@pytest.mark.parametrize(("fixed", "moving"), [(24, 2), (4, 2), (2, 1), (3, 1)])
def test_so_are_too_few_planes_for_differences(fixed, moving):
    with pytest.raises(GridError, match=rf"{moving} plane.*{fixed}"):
        require_thickness((Grid((fixed, 40, 40)), Grid((moving, 40, 40))), PRESETS["rigid"])


@pytest.mark.parametrize(
    ("fixed", "moving", "config"),
    [
        (Grid((24, 40, 40)), Grid((3, 40, 40)), PRESETS["rigid"]),
        (Grid((3, 40, 40)), Grid((2, 40, 40)), PRESETS["rigid"]),
        (Grid((1, 40, 40)), Grid((1, 40, 40)), PRESETS["rigid"]),
        (Grid((24, 40, 40)), Grid((2, 40, 40)), PRESETS["brain"]),
        (Grid((24, 40, 40)), Grid((1, 40, 40), (10.0, 1.0, 1.0)), PRESETS["rigid"]),
        (Grid((24, 40, 40)), Grid((1, 40, 40)), VOXELS),
        (Grid((24, 40, 40)), Grid((1, 40, 40)), Config(stages=(Deformable(),))),
    ],
    ids=["three planes", "two of three", "one of one", "two, without differences", "thick", "one, voxel by voxel", "deformable"],
)
def test_what_can_be_compared_is_not(fixed, moving, config):
    assert require_thickness((fixed, moving), config) is None


def test_the_axis_across_the_planes_counts():
    thick_in_y = Grid((40, 24, 40), (1.0, 0.1, 1.0))
    assert require_thickness((thick_in_y, Grid((1, 40, 40), direction=TURNED)), PRESETS["rigid"]) is None
    with pytest.raises(GridError, match="the fixed one 40"):
        require_thickness((thick_in_y, Grid((1, 40, 40))), PRESETS["rigid"])

"""Images that their headers place apart are refused with their sizes as they are stored."""

import numpy as np
import pytest

from daskreg.config import Rigid
from daskreg.errors import NoOverlap
from daskreg.grid import Grid
from daskreg.storage.images import open_volume
from daskreg.workflows.fitting import require_overlap
from daskreg.workflows.inputs import Request


def test_extents_are_told_in_the_order_of_the_axes_of_the_file_whichever_axis_is_cut():
    plane = np.ones((1, 12, 10), np.float32)
    fixed, moving = (open_volume(plane, grid=Grid(plane.shape, (3, 2, 1), (0, y, 0), unit="millimeter")) for y in (0, 100))
    inputs = Request(fixed, moving, [Rigid()]).open()
    with pytest.raises(NoOverlap, match=r"100 millimeter apart, their extents \[3.0, 24.0, 10.0\] and \[3.0, 24.0, 10.0\] \(z"):
        require_overlap(inputs.plan(), inputs)

"""Where two ranks' blocks meet, the displacement of a real pair is as smooth as anywhere else; without its halos it is not."""

import numpy as np
import pytest

from daskreg import LNCC, Affine, Deformable, Moments, open_volume
from daskreg.config import Config
from daskreg.engine.loop import Loop
from daskreg.grid import Partition
from daskreg.kernels.jacobian import jacobian
from daskreg.planning import make_plan
from daskreg.workflows.demo import demo_pair
from tests.unit.engine.spread import Registration

STAGES = [
    Moments(),
    Affine(scales=(4,), iterations=(20,)),
    Deformable(similarity=LNCC(radius=2), scales=(4, 2, 1), iterations=(20, 20, 10)),
]
RANKS = [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))]
LIMIT = 3.5  # standard deviations of what the other planes show
NEAR, FAR = 3, 7  # planes from a face between which its surroundings lie


class Heads(Registration):
    """The bundled pair, on its own grids."""

    def __init__(self):
        fixed, moving = (open_volume(path) for path in demo_pair(3))
        super().__init__(fixed.read(), moving.read(), Config.of_stages(STAGES))
        self.grids = fixed.grid, moving.grid

    def plan(self, ranks, residency):
        return make_plan(*self.grids, self.config, workers=ranks, residency=residency)


def kinks(field):
    """How sharply a field (.., Z, Y, X) bends from plane z to z + 1, beside faces NEAR to FAR planes away, by z; a logarithm.

    The third difference is the first that a smooth field has little of, whatever its slope and curvature.
    """
    third = np.abs(np.diff(field, n=3, axis=-3)).reshape(-1, field.shape[-3] - 3, field.shape[-2] * field.shape[-1])
    bend = np.full(field.shape[-3], np.nan)
    bend[1:-2] = np.log(third.mean(axis=(0, 2)))
    around = [k for k in range(-FAR + 1, FAR) if abs(k) >= NEAR]
    return bend - np.mean([np.roll(bend, k) for k in around], axis=0)


def stands_out(field, faces):
    """How far the kinks at ``faces`` (z of the plane before) together are above those elsewhere, in standard deviations."""
    planes, found = np.arange(field.shape[-3]), kinks(field)
    inside = (planes > len(planes) // 8) & (planes < len(planes) - len(planes) // 8)  # beyond there is little to warp
    away = found[inside & (np.abs(planes[:, None] - faces).min(axis=1) >= NEAR)]
    return float((found[faces] - away.mean()).sum() / away.std() / np.sqrt(len(faces)))


def determinant(u):
    """det(I + Du) of u (3, Z, Y, X), voxels."""
    found = np.empty(u.shape[1:], np.float32)
    jacobian(found.shape, 0, u, found)
    return found


def faces(planes, ranks):
    return [slab.stop - 1 for slab in Partition.of(planes, ranks).slabs[:-1]]


@pytest.mark.parametrize("ranks", RANKS)
def test_no_seam_shows_in_the_displacement_and_its_jacobian(ranks):
    u = Heads().run(ranks, "window").displacement
    at = faces(u.shape[1], ranks)
    assert len(at) == ranks - 1
    assert stands_out(u, at) < LIMIT
    assert stands_out(determinant(u), at) < LIMIT


class Clamped:
    """In place of a halo that comes from the neighbours: a rank repeats its own first and last plane there."""

    def __init__(self, block):
        self.own, self.held = block.own, block.held

    def start(self, *fields, after=None):
        for array, first in fields:
            below, above = self.own.start - first, self.own.stop - first
            array[..., :below, :, :] = array[..., below : below + 1, :, :]
            array[..., above:, :, :] = array[..., above - 1 : above, :, :]
        return []


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("missing", ["warp_halo", "gradient_halo", "window_halo"])
def test_a_block_that_ends_at_its_own_planes_shows_as_a_seam(monkeypatch, missing, ranks):
    """The composition looked up at clamped edges, the gradient's filter, the windows of LNCC."""
    whole = Loop.__init__

    def initialise(loop, *arguments):
        whole(loop, *arguments)
        setattr(loop.evaluation if missing == "window_halo" else loop, missing, Clamped(loop.block))

    monkeypatch.setattr(Loop, "__init__", initialise)
    u = Heads().run(ranks, "window").displacement
    at = faces(u.shape[1], ranks)
    assert stands_out(u, at) > LIMIT
    assert stands_out(determinant(u), at) > LIMIT

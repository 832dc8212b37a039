"""Windows of local correlation whose radius is stated in millimetres."""

from dataclasses import replace

import pytest

from daskreg import PRESETS
from daskreg.config import Affine, Config, Deformable
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MSE
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks

SHAPE = (34, 33, 32)
SHORT = {"iterations": 3, "tolerance": 0}
STATED = LNCC(radius=3, radius_mm=2)  # 2 voxels of 1 mm, 1 of 2 mm


@pytest.mark.parametrize(
    ("edge", "radius"), [(None, 3), (0.1, 3), (1, 3), (1.59, 3), (1.61, 2), (2, 2), (2.66, 2), (2.67, 1), (3, 1), (50, 1)]
)
def test_the_radius_is_what_fits_into_the_millimetres_and_at_most_that_in_voxels(edge, radius):
    assert LNCC(radius=3, radius_mm=4, noise=0.1).in_voxels(edge) == LNCC(radius=radius, noise=0.1)


def test_without_millimetres_nothing_depends_on_the_voxels():
    stage = Deformable(similarity=LNCC(radius=3))
    assert stage.in_voxels(2.0) is stage


def configured(*stages):
    return Config(stages=stages)


def registration(config, **given):
    """Two images with voxels of 1 mm."""
    found = Registration(blobs(SHAPE, 1), blobs(SHAPE, 2), config, **given)
    found.grids = tuple(replace(grid, unit="millimeter") for grid in found.grids)
    return found


@pytest.fixture(scope="module")
def expected():
    """Of a radius in voxels at each level."""
    explicit = (Deformable(similarity=LNCC(radius=r), scales=k, **SHORT) for k, r in ((2, 1), (1, 2)))
    return registration(configured(*explicit)).run(1)


@pytest.mark.parametrize(
    ("ranks", "residency", "state"),
    [(1, "replicate", "device"), (3, "ring", "device"), (2, "window", "device"), (1, "replicate", "host"), (2, "window", "host")],
)
def test_the_bits_are_those_of_the_radius_in_voxels(expected, ranks, residency, state):
    stated = configured(Deformable(similarity=STATED, scales=(2, 1), **SHORT))
    assert_same_bits(registration(stated, state=state).run(ranks, residency), expected)


def test_those_of_a_linear_stage_too():
    one, other = (registration(configured(Affine(similarity=s, scales=2, iterations=3))) for s in (STATED, LNCC(radius=1)))
    assert_same_bits(one.run(2, "window"), other.run(1))


def judged(similarity):
    """What is told of the loss of an affine stage before and after a deformable one."""
    warp = Deformable(similarity=MSE(), scales=1, smooth_gradient=3, **SHORT)
    case = registration(configured(Affine(similarity=similarity, scales=1, iterations=2), warp))
    return on_ranks(1, lambda comm: case.rank(comm, "replicate").run().levels[-1].detail)[0]


def test_a_loss_that_judges_the_next_stage_has_them():
    assert judged(STATED) == judged(LNCC(radius=2)) != judged(LNCC(radius=3))


@pytest.mark.parametrize("workers", [1, 4])
def test_a_plan_takes_what_the_radius_in_voxels_takes(workers):
    grid = Grid((64, 48, 40), (2.0, 2.0, 2.0), unit="mm")
    one, other = (make_plan(grid, grid, configured(Deformable(similarity=s, scales=1)), workers=workers)
                  for s in (LNCC(radius=8, radius_mm=4), LNCC(radius=2)))  # fmt: skip
    assert one.levels == other.levels
    assert one.lines() == other.lines()


@pytest.mark.parametrize(("millimetres", "radius"), [(0.5, 3), (1, 3), (1.5, 2), (2, 1), (3, 1)])
def test_the_preset_of_heads_has_windows_of_about_the_same_size(millimetres, radius):
    fine = PRESETS["brain"].stages[-1]
    grid = Grid((4, 4, 4), (millimetres * 1000,) * 3, unit="micrometer")
    assert fine.in_voxels(grid.edge_mm).similarity.radius == radius

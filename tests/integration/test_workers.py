"""Any number of worker processes, over any connection, wherever the moving image lives: not a bit of the result differs."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from distributed.comm import tcp
from distributed.diagnostics.plugin import SchedulerPlugin

import daskreg
from daskreg import LNCC, MI, MSE, Affine, Deformable, Moments, Rigid
from daskreg.cli import main
from daskreg.config import Config, Search
from daskreg.errors import ConfigError, InputError
from daskreg.grid import Grid
from daskreg.planning import RESIDENCIES
from daskreg.storage import CheckpointStore, RunStore, open_volume, write_affine, write_image
from daskreg.workflows.demo import demo_pair
from tests.integration.workers import COMMS, addresses, cluster, require, run, same
from tests.phantoms import body_mask, known_warp_pair, rotation, turned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are processes that are forked and killed")


@pytest.fixture(scope="module")
def client():
    with cluster(4) as found:
        yield found


def affine(loss, scales=(2,)):
    return Affine(similarity=loss, scales=scales, iterations=[3] * len(scales))


def deformable(loss, scales=(2, 1), iterations=4, **options):
    return Deformable(similarity=loss, scales=scales, iterations=[iterations] * len(scales), **options)


@dataclass
class Case:
    """What is registered, and how; ``blocks`` that do work when there are four workers."""

    images: tuple[Any, Any]
    stages: Any
    options: dict[str, Any] = field(default_factory=dict)
    blocks: int = 4


def images(shape, seed=0, grids=(None, None)):
    fixed, moving, _ = known_warp_pair(shape, 2.0, seed)
    return tuple(v if g is None else open_volume(v, grid=g) for v, g in zip((fixed, moving), grids, strict=True))


def mean_squares(folder):
    return Case(images((33, 30, 28)), [affine(MSE()), deformable(MSE())])


def local_correlation(folder):
    return Case(images((34, 29, 31), 1), [affine(LNCC()), deformable(LNCC())])


def center_gradient(folder):
    return Case(images((37, 26, 30), 2), [deformable(LNCC(radius=1, gradient="center"))])


def mutual_information(folder):
    return Case(images((35, 28, 27), 3), [Moments(), affine(MI()), deformable(MI())])


def only_an_affine(folder):
    """Ends with a coarse level, whose halos are not those of the images."""
    return Case(
        images((36, 32, 32), 4), [Moments(orientation=True), Rigid(similarity=MI(), scales=(4,), iterations=(4,)), affine(MI())]
    )


def blocks_thinner_than_their_halos(folder):
    """Two to three planes a block, filters and windows that read seven around it."""
    stages = [deformable(LNCC(radius=4), scales=(1,), smooth_gradient=2.5, smooth_warp=1.0)]
    return Case(images((11, 26, 24), 5), stages, {"fewest": 1})


def blocks_that_are_idle(folder):
    """At the coarsest level there is work for one rank of four, then for two."""
    return Case(images((21, 26, 24), 6), [affine(MSE(), (4, 2)), deformable(MSE(), (4, 2, 1))], blocks=2)


def different_oblique_grids(folder):
    fixed = Grid((29, 31, 27), (1.5, 1.0, 1.2), (3.0, -4.0, 5.0), tuple(map(tuple, rotation((5, 12, -9)))), "mm", True)
    moving = Grid((37, 26, 33), (1.1, 1.3, 1.0), (2.0, -3.0, 4.0), tuple(map(tuple, rotation((-7, 4, 15)))), "mm", True)
    parts = known_warp_pair(fixed.shape, 2.0, 7)[0], known_warp_pair(moving.shape, 2.0, 7)[1]
    return Case(tuple(open_volume(v, grid=g) for v, g in zip(parts, (fixed, moving))), [affine(MI()), deformable(LNCC())], blocks=3)


def a_quarter_turn(folder):
    """Planes of the fixed image lie across those of the moving one: every block reads every shard."""
    fixed, moving = images((32, 32, 32), 8)
    grid, path = Grid((32, 32, 32)), folder / "turn.txt"
    turn = np.eye(4)
    turn[:3, :3] = rotation((0, 0, 85))
    turn[:3, 3] = grid.center - turn[:3, :3] @ grid.center
    write_affine(path, turn)
    stages = [affine(MSE()), deformable(MSE())]
    return Case((fixed, moving), Config(stages=stages, initial_transform=str(path)))


def a_turned_grid(folder):
    fixed, moving = images((31, 30, 29), 9)
    grid = Grid((31, 30, 29))
    return Case((fixed, open_volume(moving, grid=turned(grid, (0, 60, 40)))), [affine(MI()), deformable(MI())], blocks=3)


def thin_along_z(folder):
    """Nine planes: another axis is cut."""
    return Case(images((9, 20, 44), 10), [affine(MSE()), deformable(LNCC(radius=1))])


def masks(folder):
    fixed, moving, warp = known_warp_pair((32, 28, 30), 2.0, 11)
    options = {
        "fixed_mask": body_mask(fixed.shape, warp).astype(np.float32),
        "moving_mask": body_mask(fixed.shape).astype(np.float32),
    }
    return Case((fixed, moving), [affine(MSE()), deformable(LNCC())], options)


def a_global_search(folder):
    stages = [Search(size=24, rotations="right-angles"), affine(MSE())]
    return Case(images((33, 27, 30), 12), stages)


CASES = [
    mean_squares,
    local_correlation,
    center_gradient,
    mutual_information,
    only_an_affine,
    blocks_thinner_than_their_halos,
    blocks_that_are_idle,
    different_oblique_grids,
    a_quarter_turn,
    a_turned_grid,
    thin_along_z,
    masks,
    a_global_search,
]


def spread():
    """For each case three runs: every number of workers, every residency, connections in turn. All pairs meet."""
    for k, case in enumerate(CASES):
        for j, workers in enumerate((2, 3, 4)):
            yield case, workers, RESIDENCIES[(j + k) % 3], COMMS[(j + k // 3) % 2]


@pytest.fixture(scope="module")
def alone(client, tmp_path_factory):
    """A case and its result on one worker, made once."""
    known = {}

    def of(make):
        if make not in known:
            case = make(tmp_path_factory.mktemp(make.__name__))
            known[make] = case, run(client, *case.images, case.stages, workers=1, **case.options)
        return known[make]

    return of


@pytest.mark.parametrize(("make", "workers", "residency", "comm"), list(spread()), ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_run_is_the_same_on_any_number_of_workers(client, alone, make, workers, residency, comm):
    require(comm)
    case, first = alone(make)
    found = run(client, *case.images, case.stages, workers=workers, residency=residency, comm=comm, **case.options)
    assert same(first, found).bits, same(first, found).line()
    assert np.asarray(found.moved.data).tobytes() == np.asarray(first.moved.data).tobytes()
    assert found.report["metrics"] == first.report["metrics"]
    assert sum(b > a for a, b in found.report["blocks"]) == min(workers, case.blocks)


def test_the_runs_that_are_compared_do_something(alone):
    for make in CASES:
        _, found = alone(make)
        assert any(len(set(level["losses"])) > 1 for level in found.report["levels"]), make
        if found.displacement is not None:
            assert np.abs(np.asarray(found.displacement)).max() > 0.3, make


def test_all_pairs_of_workers_residency_connection_and_loss_meet():
    met = Counter()
    for make, *choice in spread():
        for pair in itertools.combinations(enumerate(choice), 2):
            met[pair] += 1
    assert len(met) == 3 * 3 + 3 * 2 + 3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_every_case_with_every_residency_and_connection(client, alone, make, residency, comm):
    require(comm)
    case, first = alone(make)
    for workers in (2, 3, 4):
        found = run(client, *case.images, case.stages, workers=workers, residency=residency, comm=comm, **case.options)
        assert same(first, found).bits, same(first, found).line()


def test_a_turned_image_needs_planes_from_afar(client, alone):
    """With blocks across the shards, the ring carries planes that a block's own place in the row would not need."""
    case, _ = alone(a_quarter_turn)
    carried = {}
    for make in (a_quarter_turn, mean_squares):
        case, _ = alone(make)
        found = run(client, *case.images, case.stages, workers=4, residency="ring", comm="tcp", **case.options)
        carried[make] = sum(r["traffic"]["ring"] for r in found.report["ranks"])
    assert carried[a_quarter_turn] > 3 * carried[mean_squares]

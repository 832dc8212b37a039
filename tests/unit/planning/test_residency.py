"""The residency that a plan chooses for the moving image, by memory limit; and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from daskreg.config import Affine, Config, Deformable
from daskreg.errors import PlanTooLarge
from daskreg.grid import Grid
from daskreg.planning import RESIDENCIES, make_plan
from daskreg.planning.plan import MORE_WORKERS
from daskreg.similarity import LNCC, MSE
from tests.phantoms import rotation

SHAPE = (512, 512, 512)
STAGES = (Affine(similarity=MSE()), Deformable(similarity=LNCC(), scales=(2, 1)))


def planned(workers=16, moving=None, **options):
    return make_plan(Grid(SHAPE), moving or Grid(SHAPE), Config(stages=STAGES), workers=workers, **options)


def chosen(memory, **options):
    return [level.residency for stage in planned(memory=memory, **options).levels for level in stage]


def needed(residency, **options):
    """Bytes of the finest level."""
    plan = planned(residency=residency, **options)
    return plan.memory_use(1, plan.levels[1][-1]).total


def test_residencies_need_less_memory_from_replicate_to_window_to_ring():
    """With blocks thick enough that three shards are smaller than two windows."""
    needs = [needed(residency, workers=16) for residency in RESIDENCIES]
    assert sorted(needs, reverse=True) == needs
    assert len(set(needs)) == 3


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_auto_chooses_the_first_residency_that_fits(residency):
    assert chosen(needed(residency))[-1] == residency
    k = RESIDENCIES.index(residency)
    assert chosen(needed(residency) - 1)[-1] == RESIDENCIES[min(k + 1, 2)]


def test_auto_chooses_for_each_level():
    """A coarse level fits whole where the finest does not."""
    assert chosen(needed("window")) == ["replicate", "replicate", "replicate", "window"]


def test_auto_replicates_without_a_memory_limit():
    assert set(chosen(None)) == {"replicate"}


def test_a_plan_that_does_not_fit_uses_the_smallest_residency_and_is_refused():
    least = min(RESIDENCIES, key=needed)
    plan = planned(memory=1 << 20)
    assert plan.levels[1][-1].residency == least
    with pytest.raises(PlanTooLarge, match=r"needs .* MiB a worker .*, a worker has 1\.0 MiB; "):
        plan.validate(1 << 20)


def test_a_window_on_a_perpendicular_image_saves_nothing():
    """Every block reaches all of the image, so the ring is next."""
    turn, middle = rotation((0, 0, 90)), (np.asarray(SHAPE) - 1) / 2
    across = Grid(SHAPE, direction=tuple(map(tuple, turn)), origin=tuple(middle - turn @ middle))
    assert chosen(needed("replicate", moving=across) - 1, moving=across)[-1] == "ring"


def test_a_refusal_states_how_many_workers_would_fit():
    plan = planned(workers=3, memory=2 << 30)
    with pytest.raises(PlanTooLarge, match=r"use (\d+) workers of that memory") as refused:
        plan.validate(2 << 30)
    n = int(str(refused.value).partition("use ")[2].split()[0])
    assert planned(workers=n, memory=2 << 30).peak_bytes <= 2 << 30 < planned(workers=n - 1, memory=2 << 30).peak_bytes


@pytest.mark.parametrize("asked", [{"images": "device"}, {"residency": "replicate"}, {"state": "device"}])
def test_the_advice_is_for_what_was_asked_for(asked):
    memory = 3 << 30
    with pytest.raises(PlanTooLarge) as refused:
        planned(memory=memory, workers=2, **asked).validate(memory)
    advice = str(refused.value)
    fitting = [n for n in MORE_WORKERS if planned(workers=n, memory=memory, **asked).peak_bytes <= memory]
    assert f"use {fitting[0]} workers" in advice if fitting else "no more workers of that memory would do" in advice


def test_many_workers_need_less_than_a_whole_image_each():
    """Otherwise images could not grow with the number of workers."""
    many = make_plan(Grid((8192, 1024, 1024)), Grid((8192, 1024, 1024)), Config(stages=STAGES), workers=128, memory=12 << 30)
    assert many.peak_bytes < 12 << 30 < many.moving.size * 4


def test_a_chunk_that_is_decoded_whole_counts():
    plan = planned(memory=None)
    assert replace(plan, unpacked=(0, 62 << 30)).peak_bytes > 62 << 30
    assert replace(plan, unpacked=(1 << 20, 1 << 20)).peak_bytes == plan.peak_bytes

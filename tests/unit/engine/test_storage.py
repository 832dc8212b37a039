"""Mixed storage: its memory, its precision, and the fallback to float32 on a CPU. No GPU is needed."""

import logging

import numpy as np
import pytest

import daskreg
from daskreg.config import Config, Deformable
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.state import MixedStateStore, StateStore
from daskreg.grid import Grid, Partition
from daskreg.optimizers.adam import Adam
from daskreg.planning import RESIDENCIES, make_plan, needs_spare
from daskreg.planning.traffic import traffic
from daskreg.similarity import LNCC, MSE
from tests.phantoms import blobs

SHAPE = (12, 10, 9)


def stage(**given):
    return Deformable(**{"similarity": MSE(), "scales": (1,), "iterations": (3,), "tolerance": 0, "storage": "mixed"} | given)


def plan(workers=1, residency="replicate", **given):
    return make_plan(
        Grid(SHAPE), Grid(SHAPE), Config(stages=(stage(**given),)), workers=workers, residency=residency, minimum_planes=1
    )


def block():
    return Block(SHAPE, Partition.of(SHAPE[0], 1))


def mixed_store(spare=False):
    return MixedStateStore(block(), (1, 1, 1), Adam().build("mixed", "cuda"), spare)


def allocated(fields, images):
    """Bytes of a level: fields, moved, and both images."""
    arrays = fields.u, *fields.optimizer_state.values(), fields.g, fields.d, block().scalar(), *(i.voxels for i in images)
    return sum(a.nbytes for a in arrays)


def images(half):
    made = [Image.whole(blobs(SHAPE, seed), Grid(SHAPE)) for seed in (1, 2)]
    for image in made:
        image.round()
        image.hold(half=half)
    return made


@pytest.mark.parametrize(("given", "count"), [({}, 44), ({"smooth_gradient": 5.0}, 56), ({"storage": "float32"}, 72)])
def test_a_plan_counts_the_allocated_bytes(given, count):
    made, mixed = plan(**given), given.get("storage", "mixed") == "mixed"
    level, voxels = made.levels[0][0], np.prod(SHAPE)
    spare = needs_spare(made.config.stages[0], level, 1)
    fields = mixed_store(spare) if mixed else StateStore(block(), (1, 1, 1), Adam().build("float32", "cpu"))
    use = made.memory_use(0, level)
    assert allocated(fields, images(mixed)) == use.images + use.moving + use.fields == count * voxels


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_the_gradient_and_the_ring_send_half_the_bytes(residency):
    plans = plan(3, residency), plan(3, residency, storage="float32")
    sent = [traffic(p, p.config.stages[0], p.levels[0][0]) for p in plans]
    plane, planes = SHAPE[1] * SHAPE[2], 3  # of the gradient: two taps of its filter and one of the warp's
    for mixed, single in zip(*sent, strict=True):
        assert mixed.ring * 2 == single.ring
        assert single.halo - mixed.halo in {planes * plane * 6, 2 * planes * plane * 6}  # one neighbour, or two


def test_views_of_one_buffer_do_not_overlap_between_reads_and_writes():
    fields = mixed_store()
    assert fields.gradient.shape == fields.g.shape
    assert np.shares_memory(fields.gradient, fields.g)
    assert not np.shares_memory(fields.gradient, fields.slope)
    assert fields.d.size == 0


def test_moments_survive_a_checkpoint_bit_for_bit():
    fields, again = mixed_store(), mixed_store()
    words = np.random.default_rng(0).integers(0, 2**32, fields.u.shape, np.uint32)
    fields.optimizer_state["moments"][...] = words & np.uint32(0xBFFFBFFF)  # neither NaN nor infinite
    saved = fields.saved(optimizer=True)
    again.restore(lambda name, span: saved[name].array, [1.0])
    np.testing.assert_array_equal(again.optimizer_state["moments"], fields.optimizer_state["moments"])
    assert sorted(saved) == ["m", "u", "v"]
    assert all(a.dtype == np.float32 for a in saved.values())


def test_a_rounded_image_survives_a_round_trip_through_float16():
    single, half = images(half=False)[0], images(half=True)[0]
    assert half.voxels.nbytes * 2 == single.voxels.nbytes
    half.hold(half=False)
    np.testing.assert_array_equal(half.voxels, single.voxels)


def test_a_mixed_storage_recipe_runs_in_float32_on_a_cpu_with_a_warning(tmp_path, caplog):
    pair, results = (blobs((16, 15, 14), 1), blobs((16, 15, 14), 2)), []
    with caplog.at_level(logging.WARNING, "daskreg"):
        for storage in ("mixed", "float32"):
            recipe = [stage(similarity=LNCC(radius=1), storage=storage)]
            results.append(daskreg.register(*pair, recipe, output=tmp_path / f"{storage}.zarr", device="cpu"))
    np.testing.assert_array_equal(*(r.displacement.compute() for r in results))
    assert [r.report["config"]["stages"][0]["storage"] for r in results] == ["float32", "float32"]
    assert [r.message for r in caplog.records if "storage" in r.message] == [
        "storage: mixed is for GPUs; on a CPU the run is computed in float32, unless in storage: moments."
    ]

"""Fields out of a GPU's memory: the bits of the loop that holds all of them there."""

import pytest

from daskreg.optimizers.sgd import SGD
from daskreg.storage.scratch import ScratchFolder
from tests.gpu.test_loop import LOSSES, OnDevice, pair, stages
from tests.unit.engine.spread import assert_same_bits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("storage", ["float32", "mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_slabs_from_host_memory_give_the_same_bits(loss, storage):
    recipe = stages(loss, storage=storage)
    expected = OnDevice(*pair(), recipe).run(1)
    for slab in (6, 13, 64):
        assert_same_bits(OnDevice(*pair(), recipe, state="host", slab=slab).run(1), expected)


@pytest.mark.parametrize("loss", ["center", "mi"])
def test_on_several_ranks_too(loss):
    expected = OnDevice(*pair(), stages(loss)).run(1)
    for ranks, residency in ((2, "window"), (3, "replicate")):
        assert_same_bits(OnDevice(*pair(), stages(loss), state="host", slab=5).run(ranks, residency), expected)


@pytest.mark.parametrize("storage", ["float32", "mixed"])
def test_wide_filters(storage):
    recipe = stages("lncc", storage=storage, smooth_gradient=3.0, smooth_warp=1.5)
    expected = OnDevice(*pair(), recipe).run(1)
    assert_same_bits(OnDevice(*pair(), recipe, state="host", slab=9).run(1), expected)


def test_another_optimizer():
    recipe = stages("mse", optimizer=SGD())
    expected = OnDevice(*pair(), recipe).run(1)
    assert_same_bits(OnDevice(*pair(), recipe, state="host", slab=9).run(1), expected)


def test_from_disk(tmp_path):
    expected = OnDevice(*pair(), stages("center")).run(1)
    with ScratchFolder(tmp_path) as folder:
        case = OnDevice(*pair(), stages("center"), state="disk", slab=7)
        case.scratch = folder.allocate
        assert_same_bits(case.run(1), expected)
        assert folder.moved > 0

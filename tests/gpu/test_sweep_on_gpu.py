"""Fields out of a GPU's memory: the bits of the loop that holds all of them there."""

import time

import numpy as np
import pytest

from daskreg.engine.planes import ArrayPlanes
from daskreg.engine.sweep.transfers import Transfers
from daskreg.grid import Span
from daskreg.kernels.device import Device
from daskreg.kernels.page_locked import page_locked_zeros
from daskreg.optimizers.sgd import SGD
from daskreg.storage.scratch import ScratchFolder
from tests.gpu.test_loop import LOSSES, OnDevice, pair, stages
from tests.unit.engine.spread import assert_same_bits
from tests.unit.engine.test_sweep import FULL, HALF

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


@pytest.mark.parametrize("together", [2, 3, 4])
@pytest.mark.parametrize("storage", ["float32", "mixed"])
@pytest.mark.parametrize("loss", ["mse", "lncc", "center", "ngf"])
def test_several_iterations_a_sweep(loss, storage, together):
    """In memory graphs of two iterations are replayed, which may be of two groups."""
    recipe = stages(loss, storage=storage, iterations_per_sweep=together)
    expected = OnDevice(*pair(), recipe).run(1)
    for ranks, slab in ((1, 7), (1, 64), (2, 9)):
        assert_same_bits(OnDevice(*pair(), recipe, state="host", slab=slab).run(ranks), expected)
    assert_same_bits(OnDevice(*pair(), recipe).run(2, "ring"), expected)


def test_from_disk(tmp_path):
    expected = OnDevice(*pair(), stages("center")).run(1)
    with ScratchFolder(tmp_path) as folder:
        case = OnDevice(*pair(), stages("center"), state="disk", slab=7)
        case.scratch = folder.allocate
        assert_same_bits(case.run(1), expected)
        assert folder.moved > 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("storage", ["float32", "mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_images_out_of_memory_give_the_same_bits(loss, storage, masked, tmp_path):
    recipe, masks = stages(loss, storage=storage), (None, None)
    if masked:
        rng = np.random.default_rng(0)
        masks = tuple((rng.random(pair()[0].shape) > 0.3).astype(np.float32) for _ in range(2))
    expected = OnDevice(*pair(), recipe, masks).run(1)
    assert_same_bits(OnDevice(*pair(), recipe, masks, "host", 13, (FULL,)).run(1), expected)
    with ScratchFolder(tmp_path) as folder:
        run = OnDevice(*pair(), recipe, masks, "disk", 7, (FULL, HALF))
        run.scratch = folder.allocate
        assert_same_bits(run.run(1), expected)


def test_page_locked_memory_is_given_back():
    """It is zero, as large as asked for, and registered again where the same addresses come back."""
    import cupy

    for size in (0, 7, 5_000_000):
        for _ in range(2):
            array = page_locked_zeros((3, size), np.uint16)
            assert array.shape == (3, size)
            assert not array.any()
            part = array[:, size // 2 :]
            del array
            cupy.ones(part.shape[1], np.uint16).get(out=part[1])
            assert int(part.sum()) == part.shape[1]
            del part


def test_a_read_into_memory_that_was_freed_waits_for_the_kernels_that_use_it():
    """A kernel that was launched, but has not begun, writes to memory that the pool gives again."""
    import cupy

    device, span, plane = Device("cuda"), Span(0, 8), (64, 64)
    device.use()
    field = ArrayPlanes.page_locked(3, span, plane)
    field.array[...] = np.random.default_rng(0).random(field.array.shape, np.float32)
    found = cupy.zeros(field.array.shape, np.float32)
    cupy.ones(3, np.float32).fill(2)  # its kernel is there
    freed = cupy.empty(field.array.size, np.float32)
    cupy.cuda.get_current_stream().launch_host_func(lambda _: time.sleep(0.3), None)
    freed.fill(np.nan)
    address = freed.data.ptr
    del freed
    transfers = Transfers(device, {"u": field}, len(span))
    transfers.expect([{"u": [span]}])
    assert transfers.incoming[0]["u"].data.ptr == address
    transfers.take(lambda _, planes: found[:, planes.start : planes.stop])
    transfers.close()
    np.testing.assert_array_equal(found.get(), field.array)

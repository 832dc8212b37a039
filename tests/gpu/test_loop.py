"""The deformable loop on a real CUDA device."""

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Deformable
from daskreg.engine.images import Image
from daskreg.engine.planes import ArrayPlanes
from daskreg.engine.rank import Rank
from daskreg.engine.report import SAVE, Watch
from daskreg.grid import Grid
from daskreg.kernels.device import Device, host
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE, NGF
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks, stored, whole
from tests.unit.engine.test_invariance import Asking, Memory, resumed

pytestmark = pytest.mark.gpu
LOSSES = {"mse": MSE(), "lncc": LNCC(), "center": LNCC(gradient="center"), "mi": MI(), "ngf": NGF()}


class OnDevice(Registration):
    """The same registration with its images on a GPU."""

    def images(self, plan, comm):
        device = Device("cuda")
        device.use()
        for image in super().images(plan, comm):
            image.voxels = device.put(image.voxels)
            image.mask = None if image.mask is None else device.put(image.mask)
            yield self.put_away(image) if self.stored else image

    def placed(self, image):
        return image

    def put_away(self, image):
        half = any(stage.storage == "mixed" for stage in self.config.stages)
        return stored(image, self.scratch or ArrayPlanes.page_locked, half)


def pair(shape=(41, 44, 39)):
    return blobs(shape, 1), blobs(shape, 2)


def stages(loss, **given):
    return Config(stages=(Deformable(similarity=LOSSES[loss], scales=(2, 1), iterations=(11, 8), tolerance=0, **given),))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_device_does_what_the_cpu_does(loss):
    config = stages(loss)
    cpu, cuda = Registration(*pair(), config).run(1), OnDevice(*pair(), config).run(1)
    for a, b in zip(cpu.losses, cuda.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3)
    assert np.abs(cpu.displacement - cuda.displacement).mean() < 0.01


@pytest.mark.parametrize("residency", ["replicate", "window", "ring"])
@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_do_not_show(loss, residency):
    case = OnDevice(*pair(), stages(loss))
    alone = case.run(1)
    for ranks in (2, 3):
        assert_same_bits(case.run(ranks, residency), alone)


@pytest.mark.parametrize("moving_mask", [False, True])
@pytest.mark.parametrize("loss", ["mse", "lncc", "mi"])
def test_masks_and_ranks(loss, moving_mask):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random((41, 44, 39)) > 0.3).astype(np.float32) for _ in range(2))
    masks = masks if moving_mask else (masks[0], None)
    case = OnDevice(*pair(), stages(loss), masks)
    alone = case.run(1)
    cpu = Registration(*pair(), stages(loss), masks).run(1)
    for a, b in zip(cpu.losses, alone.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3)
    for residency in ("window", "ring"):
        assert_same_bits(case.run(2, residency), alone)


@pytest.mark.parametrize("sigma", [0, 0.5, 1.5])
def test_any_smoothing_of_the_warp(sigma):
    config = stages("mse", smooth_warp=sigma, smooth_gradient=1.5)
    cpu, cuda = Registration(*pair(), config).run(1), OnDevice(*pair(), config).run(1)
    for a, b in zip(cpu.losses, cuda.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3)


def test_a_gradient_smoothed_further_than_shared_memory_goes():
    config = stages("mse", smooth_gradient=5)
    cpu, cuda = Registration(*pair(), config).run(1), OnDevice(*pair(), config).run(1)
    for a, b in zip(cpu.losses, cuda.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3)
    assert_same_bits(OnDevice(*pair(), config).run(2, "window"), cuda)


def test_the_device_repeats_itself():
    case = OnDevice(*pair(), stages("lncc"))
    assert_same_bits(case.run(1), case.run(1))


def test_a_perfect_match_stays():
    image = pair()[0]
    found = OnDevice(image, image, stages("mse"))
    found.grids = (found.grids[0], found.grids[0])
    made = found.run(1)
    assert np.abs(made.displacement).max() == 0


@pytest.mark.parametrize("loss", ["mse", "lncc", "mi"])
def test_affine_on_the_device(loss):
    config = Config(stages=(Affine(similarity=LOSSES[loss], scales=(2, 1), iterations=(8, 5)),))
    cpu, cuda = Registration(*pair(), config).run(1), OnDevice(*pair(), config).run(1)
    assert abs(cpu.losses[-1][-1] / cuda.losses[-1][-1] - 1) < 1e-2
    assert_same_bits(OnDevice(*pair(), config).run(2, "ring"), cuda)


# ---------------------------------------------------------------- mixed storage


def mixed(loss, **given):
    return stages(loss, storage="mixed", **given)


WIDE = {"any warp": {"smooth_warp": 1.5}, "any gradient": {"smooth_gradient": 5}, "no smoothing": {"smooth_warp": 0}}


def assert_close(found, expected):
    """The last of 19 steps of a quarter of a voxel: a few hundredths of one apart, and as good a match."""
    for a, b in zip(expected.losses, found.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-2)
    assert np.abs(expected.displacement - found.displacement).mean() < 0.02


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_storage_comes_close_to_float32(loss):
    assert_close(OnDevice(*pair(), mixed(loss)).run(1), OnDevice(*pair(), stages(loss)).run(1))


@pytest.mark.parametrize("given", WIDE.values(), ids=WIDE)
def test_mixed_storage_and_filters_of_any_width(given):
    case = OnDevice(*pair(), mixed("mse", **given))
    found = case.run(1)
    assert_close(found, OnDevice(*pair(), stages("mse", **given)).run(1))
    assert_same_bits(case.run(2, "window"), found)


@pytest.mark.parametrize("residency", ["replicate", "window", "ring"])
@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_do_not_show_in_mixed_storage(loss, residency):
    case = OnDevice(*pair(), mixed(loss))
    alone = case.run(1)
    for ranks in (2, 3):
        assert_same_bits(case.run(ranks, residency), alone)


def test_masks_and_ranks_in_mixed_storage():
    rng = np.random.default_rng(0)
    masks = tuple((rng.random((41, 44, 39)) > 0.3).astype(np.float32) for _ in range(2))
    case = OnDevice(*pair(), mixed("lncc"), masks)
    alone = case.run(1)
    assert_close(alone, OnDevice(*pair(), stages("lncc"), masks).run(1))
    assert_same_bits(case.run(3, "ring"), alone)


class OnHost(Memory):
    """Checkpoints in the machine's memory."""

    def of(self, comm):
        save = super().of(comm)
        return lambda state, fields, shape: save(state, {k: (own, host(a)) for k, (own, a) in fields.items()}, shape)


@pytest.mark.parametrize("storage", ["float32", "mixed"])
def test_a_checkpoint_goes_on_bit_for_bit(storage):
    """Saved in the midst of the finest level, on three ranks; resumed on one and on two."""
    case, memory = OnDevice(*pair(), stages("lncc", storage=storage)), OnHost()
    expected = case.run(1)
    saving = on_ranks(3, lambda comm: case.outcome(case.rank(comm, "window", Asking(SAVE), memory.of(comm))))
    assert_same_bits(whole(saving), expected)
    midst = [saved for saved in memory.saved if saved[0]["losses"] and saved[0]["level"] == 1]
    assert midst
    for ranks in (1, 2):
        assert_same_bits(resumed(case, midst[-1], ranks, "replicate"), expected)


@pytest.mark.parametrize(("storage", "count"), [("float32", 72), ("mixed", 44)])
def test_memory_is_what_is_promised(storage, count):
    """All that the pool ever held, images with it, for a level of full resolution."""
    import cupy

    shape, pool = (128, 128, 128), cupy.get_default_memory_pool()
    stage = Deformable(similarity=LNCC(), scales=(1,), iterations=(3,), tolerance=0, storage=storage)
    grid = Grid(shape)
    case = make_plan(grid, grid, Config(stages=(stage,)))
    pool.free_all_blocks()
    before = pool.total_bytes()
    Device("cuda").use()
    images = tuple(Image.whole(cupy.asarray(blobs(shape, seed)), grid) for seed in (1, 2))
    rank = Rank(case, images, np.eye(4), SingleRank(), Watch())
    rank._level(stage, case.levels[0][0])
    assert (pool.total_bytes() - before) / np.prod(shape) < count + 1

"""The deformable loop on a real CUDA device."""

import numpy as np
import pytest

from daskreg.config import LNCC, MI, MSE, Affine, Config, Deformable
from daskreg.kernels.device import Device
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, assert_same_bits

pytestmark = pytest.mark.gpu
LOSSES = {"mse": MSE(), "lncc": LNCC(), "center": LNCC(gradient="center"), "mi": MI()}


class OnDevice(Registration):
    """The same registration with its images on a GPU."""

    def images(self, plan, comm):
        device = Device("cuda")
        device.use()
        for image in super().images(plan, comm):
            image.voxels = device.put(image.voxels)
            image.mask = None if image.mask is None else device.put(image.mask)
            yield image

    def outcome(self, rank):
        made = super().outcome(rank)
        u = made.displacement
        return made._replace(displacement=u if u is None else u.get())


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


@pytest.mark.parametrize("loss", ["mse", "lncc"])
def test_masks_and_ranks(loss):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random((41, 44, 39)) > 0.3).astype(np.float32) for _ in range(2))
    case = OnDevice(*pair(), stages(loss), masks)
    alone = case.run(1)
    cpu = Registration(*pair(), stages(loss), masks).run(1)
    for a, b in zip(cpu.losses, alone.losses, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3)
    assert_same_bits(case.run(2, "window"), alone)


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

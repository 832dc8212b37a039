"""Value and gradient of every similarity against the oracle, whose own gradients are checked by finite differences."""

from functools import partial

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.engine.sums import add_up
from daskreg.grid import Partition
from daskreg.kernels.device import NO_MASK
from daskreg.similarity import LNCC, MI, MSE, NGF
from daskreg.similarity.base import Samples
from tests import reference
from tests.cases import empty, weights
from tests.phantoms import blobs, known_warp_pair

SHAPE = (13, 14, 15)
UNIT = (0.0, 1.0)
BINS = 16

# the loss, and how far float32 sums over this volume may be from float64: value relative, gradient relative to its largest
CHOICES = {
    "mse": (MSE(), reference.mse, reference.mse_gradient, 1e-6, 1e-6),
    "lncc exact": (LNCC(epsilon=1e-5, minimum_contrast=0), reference.lncc, reference.lncc_gradient, 2e-5, 2e-4),
    "lncc above noise": (
        LNCC(epsilon=1e-5, minimum_contrast=0, noise=0.2),
        partial(reference.lncc, noise=0.2),
        partial(reference.lncc_gradient, noise=0.2),
        2e-5,
        2e-4,
    ),
    "lncc center": (
        LNCC(epsilon=1e-5, minimum_contrast=0, gradient="center"),
        reference.lncc,
        partial(reference.lncc_gradient, gradient="center"),
        2e-5,
        2e-4,
    ),
    "mi": (
        MI(bins=BINS),
        partial(reference.mi, bins=BINS, range_f=UNIT, range_m=UNIT),
        partial(reference.mi_gradient, bins=BINS, range_f=UNIT, range_m=UNIT),
        1e-5,
        1e-4,
    ),
    "ngf": (NGF(), reference.ngf, reference.ngf_gradient, 1e-5, 1e-5),
}
COUNTED = {"ngf": reference.ngf_weights}  # losses that leave out voxels of weight


def pair():
    """Fixed, and moved with a box and single voxels out of domain and some intensities beyond the range."""
    rng = np.random.default_rng(11)
    fixed = np.clip(blobs(SHAPE, 1) + rng.normal(0, 0.05, SHAPE), 0, 1).astype(np.float32)
    moved = (0.7 * fixed + 0.3 * blobs(SHAPE, 2) + rng.normal(0, 0.1, SHAPE)).astype(np.float32)
    moved[:3, 2:6] = np.nan
    moved[rng.random(SHAPE) < 0.03] = np.nan
    return fixed, moved


def computed(choice, fixed, weight, moved):
    """Loss, N and N dC/dmoved as the loop computes them."""
    similarity, samples = choice.build("cpu"), Samples(SHAPE, 0, fixed, weight, moved.copy(), empty(3, *SHAPE))
    total = add_up(similarity.partial(samples), SingleRank(), Partition.of(SHAPE[0], 1))
    similarity.finish(samples, total)
    return *similarity.value(total), samples.moved


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", CHOICES)
def test_value_and_gradient_are_the_oracle(name, masked):
    choice, value, gradient, value_tolerance, tolerance = CHOICES[name]
    fixed, moved = pair()
    weight = weights(*SHAPE) if masked else NO_MASK
    w = np.where(np.isfinite(moved), weight if masked else 1, 0).astype(float)
    loss, n, slope = computed(choice, fixed, weight, moved)
    known, counted = np.nan_to_num(moved), COUNTED.get(name, np.asarray)(w)
    assert n == pytest.approx(counted.sum(), rel=1e-5)
    assert loss == pytest.approx(value(fixed, known, w), rel=value_tolerance)
    expected = gradient(fixed, known, w) * counted.sum()
    np.testing.assert_allclose(slope, expected, atol=tolerance * np.abs(expected).max())
    assert not slope[w == 0].any()


@pytest.mark.parametrize("name", ["mse", "lncc exact", "lncc above noise", "mi", "ngf"])
def test_the_oracle_s_value_falls_along_the_computed_gradient(name):
    """Central differences of the float64 loss in random directions equal the float32 gradient's slope."""
    choice, value, _, _, tolerance = CHOICES[name]
    fixed, moved = pair()
    w = np.where(np.isfinite(moved), weights(*SHAPE), 0).astype(float)
    _, n, slope = computed(choice, fixed, weights(*SHAPE), moved)
    known, rng, h = np.nan_to_num(moved).astype(float), np.random.default_rng(5), 1e-6
    between = (known > 1e-3) & (known < 1 - 1e-3)  # a clamped intensity has no derivative
    for _ in range(3):
        direction = rng.standard_normal(SHAPE) * between
        numeric = (value(fixed, known + h * direction, w) - value(fixed, known - h * direction, w)) / (2 * h)
        size = np.linalg.norm(slope) * np.linalg.norm(direction) / n
        assert (slope * direction).sum() / n == pytest.approx(numeric, abs=10 * tolerance * size)


@pytest.mark.parametrize("name", CHOICES)
def test_without_any_weight_there_is_neither_loss_nor_slope(name):
    fixed, moved = pair()
    loss, n, slope = computed(CHOICES[name][0], fixed, np.zeros(SHAPE, np.float32), moved)
    assert (loss, n) == (0, 0)
    assert not slope.any()


def test_flat_windows_do_not_divide_by_zero():
    flat = np.full(SHAPE, 0.5, np.float32)
    loss, _, slope = computed(LNCC(), flat, NO_MASK, flat)
    assert loss == 0
    assert not slope.any()


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_a_clear_gradient_of_the_centre_window_is_as_many_times_smaller_as_the_window_has_voxels(radius):
    fixed, moving, *_ = known_warp_pair((24, 24, 24), 2.0, 0)
    fixed, moving = ((a - a.min()).astype(np.float32) / np.ptp(a).astype(np.float32) for a in (fixed, moving))
    lengths, scales = [], []
    for gradient in ("exact", "center"):
        choice = LNCC(radius=radius, minimum_contrast=0.002, gradient=gradient)
        loss = choice.build("cpu")
        samples = Samples(fixed.shape, 0, fixed, NO_MASK, moving.copy(), np.zeros((3, *fixed.shape), np.float32))
        loss.finish(samples, loss.partial(samples))
        lengths.append(float(np.sqrt((samples.moved**2).mean())))
        scales.append(choice.gradient_scale)
    assert 0.5 < (lengths[0] / lengths[1]) / (scales[0] / scales[1]) < 2

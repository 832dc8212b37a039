"""Every operation gives the value of its plain form."""

import math

import pytest
import torch

import daskreg.torch as dt
from daskreg.errors import DaskregError
from daskreg.torch.compute import information
from daskreg.torch.kernels.information import gaussian_window
from tests.torch import oracles
from tests.torch.oracles import smooth

B, C, D, H, W = SHAPE = (2, 2, 7, 6, 9)
KINDS = {torch.float32: 2e-5, torch.float64: 1e-10}


@pytest.fixture(params=KINDS, ids=str)
def dtype(request):
    return request.param


def pair(dtype, shape=SHAPE):
    fixed = torch.sigmoid(smooth(shape, 1))
    return (0.7 * fixed + 0.3 * torch.sigmoid(smooth(shape, 2))).to(dtype), fixed.to(dtype)


def close(found, expected, factor=1.0):
    tolerance = factor * KINDS[found.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_mse(dtype):
    moved, fixed = pair(dtype)
    close(dt.mse(moved, fixed), ((moved - fixed) ** 2).mean())


@pytest.mark.parametrize("kind", ["rectangular", "triangular", "gaussian"])
@pytest.mark.parametrize("border", ["zeros", "count"])
def test_lncc_of_each_window(dtype, kind, border):
    moved, fixed = pair(dtype)
    weights = [dt.window_weights(5, kind)] * 3
    expected = oracles.lncc(moved.double(), fixed.double(), weights, count=border == "count")
    found = dt.lncc(moved, fixed, 5, kind=kind, border=border, reduction="none")
    close(found, -expected.to(dtype), 20)


def test_lncc_with_all_constants_and_uneven_windows(dtype):
    moved, fixed = pair(dtype)
    rules = {"floor": 0.01, "additive": 1e-3, "epsilon": 1e-4, "numerator": 1e-3, "limit": 0.8}
    weights = [dt.window_weights(n) for n in (3, 1, 5)]
    for squared in (True, False):
        expected = oracles.lncc(moved.double(), fixed.double(), weights, squared, **rules)
        close(dt.lncc(moved, fixed, (3, 1, 5), squared=squared, **rules), -expected.mean().to(dtype), 20)


def test_reductions_of_lncc(dtype):
    moved, fixed = pair(dtype)
    windows = dt.lncc(moved, fixed, 3, reduction="none")
    close(dt.lncc(moved, fixed, 3, reduction="sum"), windows.sum(), 10)
    close(dt.lncc(moved, fixed, 3, reduction="mean"), windows.mean(), 10)
    close(dt.lncc(moved, fixed, 3, reduction="volume"), windows.mean((2, 3, 4)), 10)


@pytest.mark.parametrize("contrast", [1e-2, 1e-3])
def test_lncc_keeps_its_digits_where_the_contrast_is_small(contrast):
    moved, fixed = pair(torch.float64, (1, 1, 12, 12, 12))
    moved, fixed = 1 + contrast * moved, 1 + contrast * fixed
    weights = [(1.0,) * 5] * 3
    expected = oracles.lncc(moved, fixed, weights, epsilon=1e-30, count=True).mean().item()
    found = -dt.lncc(moved.float(), fixed.float(), 5, epsilon=1e-30, border="count").item()
    naive = oracles.lncc(moved.float(), fixed.float(), weights, epsilon=1e-30, count=True).mean().item()
    assert abs(found - expected) < 1e-3
    assert abs(found - expected) < abs(naive - expected) / 5


@pytest.mark.parametrize(("bins", "ratio"), [(23, 0.5), (32, 1.0)])
def test_mutual_information(dtype, bins, ratio):
    moved, fixed = pair(dtype, (2, 2, 8, 9, 10))
    expected = oracles.mutual_information(moved.double(), fixed.double(), bins, ratio)
    found = dt.mutual_information(moved, fixed, bins, sigma_ratio=ratio, reduction="none")
    torch.testing.assert_close(found.double(), -expected, rtol=1e-4, atol=1e-5)
    close(dt.mutual_information(moved, fixed, bins, sigma_ratio=ratio), found.mean())


def test_mutual_information_of_splines_is_that_of_daskreg(dtype):
    import numpy as np

    from daskreg.similarity.base import Samples
    from daskreg.similarity.mutual_information.loss import MutualInformation

    moved, fixed = pair(torch.float32, (1, 1, 8, 9, 10))
    arrays = [t[0, 0].numpy().copy() for t in (fixed, moved)]
    samples = Samples(
        arrays[0].shape, 0, arrays[0], np.empty((0, 0, 0), np.float32), arrays[1], np.empty((3, 0, 0, 0), np.float32)
    )
    similarity = MutualInformation(32)
    expected = similarity.value(similarity.partial(samples))[0]
    found = dt.mutual_information(moved.to(dtype), fixed.to(dtype), 32, kind="spline", numerator=0, denominator=0)
    assert found.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
def test_warp(dtype, border):
    image, u = smooth(SHAPE, 3, dtype=dtype), smooth((B, 3, 5, 7, 6), 4, 3.0, dtype)
    close(dt.warp(image, u, border), oracles.warp(image, u, border), 10)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_grid_sample_is_that_of_torch(dtype, mode, border, align):
    image, grid = smooth(SHAPE, 3, dtype=dtype), 1.4 * torch.tanh(smooth((B, 3, 5, 7, 6), 4, 1.0)).to(dtype)
    grid = grid.permute(0, 2, 3, 4, 1)
    expected = torch.nn.functional.grid_sample(image, grid, mode, border, align)
    close(dt.grid_sample(image, grid, mode, border, align), expected, 10)


def test_small_grids_of_a_gpu_are_left_to_pytorch(monkeypatch):
    image, grid = torch.rand(1, 2, 5, 6, 7, requires_grad=True), 2 * torch.rand(1, 4, 5, 6, 3) - 1
    ours = dt.grid_sample(image, grid)
    assert type(ours.grad_fn).__name__.startswith("daskreg")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    theirs = dt.grid_sample(image, grid)
    assert type(theirs.grad_fn).__name__ == "GridSampler3DBackward0"
    torch.testing.assert_close(theirs, ours)
    with pytest.raises(DaskregError, match="padding_mode is 'wrap'"):
        dt.grid_sample(image, grid, padding_mode="wrap")


def test_affine_warp(dtype):
    image, u = smooth(SHAPE, 3, dtype=dtype), smooth((B, 3, 5, 7, 6), 4, 1.5, dtype)
    affine = (torch.eye(3, 4, dtype=torch.float64) + 0.1 * smooth((B, 1, 3, 4, 1), 5)[:, 0, :, :, 0]).to(dtype)
    at = oracles.identity(u.shape[2:], u)
    first = oracles.sample_at(image, oracles.affine_points(affine, at + u), "border")
    close(dt.affine_warp(image, affine, u, border="border"), first, 20)
    last = oracles.sample_at(image, oracles.affine_points(affine, at.expand(B, -1, -1, -1, -1)) + u)
    close(dt.affine_warp(image, affine, u, order="affine_first"), last, 20)
    whole = oracles.identity((4, 5, 6), u).expand(B, -1, -1, -1, -1)
    alone = oracles.sample_at(image, oracles.affine_points(affine, whole))
    close(dt.affine_warp(image, affine, size=(4, 5, 6)), alone, 20)


def test_composition_is_the_displacement_of_both(dtype):
    outer, inner = smooth((B, 3, D, H, W), 6, dtype=dtype), smooth((B, 3, D, H, W), 7, dtype=dtype)
    close(dt.compose(outer, inner), inner + oracles.warp(outer, inner, "border"), 10)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_exponential(dtype, steps):
    v = smooth((B, 3, D, H, W), 8, dtype=dtype)
    close(dt.exponential(v, steps), oracles.exponential(v, steps), 10)


@pytest.mark.parametrize("border", ["renormalize", "zeros"])
def test_gaussian(dtype, border):
    image = smooth(SHAPE, 9, dtype=dtype)
    taps = [math.exp(-(k**2) / 2) for k in range(-3, 4)]
    taps = [t / sum(taps) for t in taps]
    close(dt.gaussian(image, 1.0, border=border), oracles.gaussian(image, taps, border == "renormalize"), 10)
    assert torch.equal(dt.gaussian(image, 0.0), image)


def test_penalties(dtype):
    u = smooth((B, 3, D, H, W), 10, dtype=dtype)
    close(dt.gradient_penalty(u), oracles.gradient_penalty(u, 2), 10)
    close(dt.gradient_penalty(u, "l1"), oracles.gradient_penalty(u, 1), 10)
    close(dt.bending_energy(u), oracles.bending_energy(u), 10)
    close(dt.bending_energy(u, normalize=True), oracles.bending_energy(u, normalize=True), 10)


def test_jacobian_determinant(dtype):
    u = smooth((B, 3, D, H, W), 11, 0.3, dtype)
    close(dt.jacobian_determinant(u), oracles.jacobian_determinant(u), 10)


@pytest.mark.parametrize("loss", ["mse", "lncc", "mi"])
@pytest.mark.parametrize("with_affine", [False, True])
def test_warped_losses_are_the_losses_of_warped_images(dtype, loss, with_affine):
    image, fixed = pair(dtype)
    u = smooth((B, 3, D, H, W), 12, dtype=dtype)
    affine = torch.eye(3, 4, dtype=dtype)[None] + 0.01 if with_affine else None
    moved = dt.warp(image, u) if affine is None else dt.affine_warp(image, affine, u)
    losses = {"mse": dt.mse, "lncc": dt.lncc, "mi": dt.mutual_information}
    close(dt.warped_loss(image, fixed, u, loss, affine=affine), losses[loss](moved, fixed), 20)


@pytest.mark.parametrize("kind", ["gaussian", "spline"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_mutual_information_of_what_is_no_number(dtype, kind, value):
    """Histograms are written inside; an image with NaN has no value, infinite intensities are clamped."""
    moved, fixed = pair(dtype)
    moved[0, 0, 3, 2, 4] = value
    for images in ((moved.requires_grad_(), fixed), (fixed, moved.detach().requires_grad_())):
        found = dt.mutual_information(*images, 16, kind=kind, reduction="none")
        assert found.isnan().tolist() == [math.isnan(value), False]
        (slope,) = torch.autograd.grad(found.sum(), next(t for t in images if t.requires_grad))
        assert slope.isnan().flatten(1).all(1).tolist() == [math.isnan(value), False]
        assert slope.isnan().flatten(1).any(1).tolist() == [math.isnan(value), False]


@pytest.mark.parametrize("shape", [(0, 3, 4, 3, 5), (1, 0, 4, 3, 5), (1, 3, 4, 3, 0)])
def test_losses_of_no_voxels_are_refused(shape):
    image, field = torch.zeros(shape), torch.zeros((shape[0], 3, *shape[2:]))
    losses = dt.mse, dt.lncc, dt.mutual_information, lambda m, f: dt.warped_loss(m, f, field)
    for loss in losses:
        with pytest.raises(DaskregError, match="at least one element was expected"):
            loss(image, image)
    for penalty in (dt.gradient_penalty, dt.bending_energy):
        with pytest.raises(DaskregError, match="expected"):
            penalty(image)


def test_images_of_an_empty_batch_are_sampled():
    image, field = torch.zeros((0, 2, 4, 3, 5), requires_grad=True), torch.zeros((0, 3, 4, 3, 5), requires_grad=True)
    moved = dt.warp(image, field)
    moved.sum().backward()
    assert moved.shape == image.grad.shape == image.shape
    assert field.grad.shape == field.shape
    assert dt.exponential(field, 2).shape == field.shape


def test_bins_whose_table_fits_into_no_block_are_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(information, "block_memory", lambda device: 48 * 1024)
    window = gaussian_window(107, 0.5, 0.0, 1.0, 0.0)
    with pytest.raises(DaskregError, match="107 bins were given; at most 106"):
        information._sloping(window, 1, 100, 1, 1.0, 0)
    with pytest.raises(DaskregError, match="107 bins were given; at most 106"):
        information._counting(window, 1, 100, 0)

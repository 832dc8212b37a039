"""Derivatives are those of the values, in float64; second ones are refused."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck as check

import daskreg.torch as dt
from tests.torch import oracles
from tests.torch.oracles import smooth

SHAPE = B, C, D, H, W = 2, 2, 4, 3, 5
gradcheck = partial(check, fast_mode=True)  # random projections: a tenth of the time


def leaf(tensor):
    return tensor.double().requires_grad_()


def images(shape=SHAPE):
    fixed = 0.1 + 0.8 * torch.sigmoid(smooth(shape, 1))
    return leaf(0.1 + 0.8 * torch.sigmoid(smooth(shape, 2))), leaf(fixed)


def field(seed, scale, shape=(D, H, W)):
    """A displacement that meets no voxel's centre, where the derivative jumps."""
    return leaf(scale * torch.tanh(smooth((B, 3, *shape), seed)) + 0.013)


LOSSES = {
    "mse": dt.mse,
    "lncc": lambda m, f: dt.lncc(m, f, 3),
    "lncc of gaussian windows": lambda m, f: dt.lncc(m, f, (3, 1, 5), kind="gaussian", border="count"),
    "lncc with all constants": lambda m, f: dt.lncc(m, f, 3, floor=0.05, additive=0.01, numerator=0.01, limit=0.9),
    "lncc that is not squared": lambda m, f: dt.lncc(m, f, 3, squared=False, floor=0.0, additive=1e-3, epsilon=0.0),
    "sum of lncc": lambda m, f: dt.lncc(m, f, 3, reduction="sum"),
    "lncc of each volume": lambda m, f: dt.lncc(m, f, 3, reduction="volume"),
    "lncc of each window": lambda m, f: dt.lncc(m, f, 3, reduction="none"),
    "mi": lambda m, f: dt.mutual_information(m, f, 8),
    "mi with all constants": lambda m, f: dt.mutual_information(
        m, f, 8, sigma_ratio=1.0, numerator=0, denominator=1e-6, additive=1e-6
    ),
    "mi of splines": lambda m, f: dt.mutual_information(m, f, 12, kind="spline", reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert gradcheck(LOSSES[name], images(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["lncc", "lncc of each window", "lncc of gaussian windows", "mi", "mse"])
@pytest.mark.parametrize("which", [0, 1])
def test_losses_with_a_derivative_for_one_image(name, which):
    given = list(images())
    given[1 - which] = given[1 - which].detach()
    assert gradcheck(LOSSES[name], given, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
def test_warp(border):
    assert gradcheck(lambda a, u: dt.warp(a, u, border), (images()[0], field(3, 2.0, (3, 4, 3))), atol=1e-6)


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [True, False])
def test_grid_sample_has_the_derivatives_of_torch(border, align):
    image, grid = leaf(smooth(SHAPE, 3)), leaf(1.3 * torch.tanh(smooth((B, 3, 4, 3, 5), 4)).permute(0, 2, 3, 4, 1) + 0.0137)
    weight = smooth((B, C, 4, 3, 5), 9)
    found = torch.autograd.grad((weight * dt.grid_sample(image, grid, "bilinear", border, align)).sum(), (image, grid))
    plain = torch.nn.functional.grid_sample(image, grid, "bilinear", border, align)
    for a, b in zip(found, torch.autograd.grad((weight * plain).sum(), (image, grid))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("order", ["displacement_first", "affine_first", None])
def test_affine_warp(order):
    affine = leaf(torch.eye(3, 4).expand(B, 3, 4) + 0.05 * smooth((B, 1, 3, 4, 1), 5)[:, 0, :, :, 0])
    if order is None:
        assert gradcheck(lambda a, m: dt.affine_warp(a, m, size=(3, 3, 4)), (images()[0], affine), atol=1e-6)
        return
    given = images()[0], affine, field(3, 0.7)
    assert gradcheck(lambda a, m, u: dt.affine_warp(a, m, u, order=order), given, atol=1e-6)


def test_one_affine_map_for_the_batch_gets_the_derivatives_of_all():
    assert gradcheck(lambda m: dt.affine_warp(images()[0].detach(), m), (leaf(torch.eye(3, 4)[None] + 0.03),), atol=1e-6)


def test_nearest_has_no_derivative_with_respect_to_the_displacement():
    image, u = images()[0], field(3, 1.0)
    of_image, of_u = torch.autograd.grad(dt.warp(image, u, interpolation="nearest").sum(), (image, u))
    assert torch.count_nonzero(of_u) == 0
    assert torch.equal(of_image, of_image.round())


@pytest.mark.parametrize("border", ["zeros", "border"])
def test_compositions(border):
    assert gradcheck(lambda a, b: dt.compose(a, b, border), (field(6, 1.0), field(7, 1.0)), atol=1e-6)
    assert gradcheck(lambda v: dt.exponential(v, 3, border), (field(8, 0.9),), atol=1e-6)


def test_exponential_without_steps():
    assert gradcheck(lambda v: dt.exponential(v, 0), (field(8, 0.9),))


FIELDS = {
    "gaussian": lambda u: dt.gaussian(u, 0.8),
    "gaussian of zeros": lambda u: dt.gaussian(u, (0.5, 0.0, 1.0), border="zeros"),
    "l2": dt.gradient_penalty,
    "l1": lambda u: dt.gradient_penalty(u, "l1"),
    "bending": dt.bending_energy,
    "normalized bending": lambda u: dt.bending_energy(u, normalize=True),
    "determinant": dt.jacobian_determinant,
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name):
    assert gradcheck(FIELDS[name], (field(9, 0.6, (4, 3, 5)),), atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "lncc", "mi"])
@pytest.mark.parametrize("with_affine", [False, True])
def test_warped_losses(loss, with_affine):
    image, fixed = images()
    affine = torch.eye(3, 4).double()[None] + 0.02 if with_affine else None
    given = image, field(12, 0.7)
    assert gradcheck(
        lambda a, u: dt.warped_loss(a, fixed.detach(), u, loss, affine=affine, window=3, bins=8), given, atol=1e-6, rtol=1e-4
    )


def test_a_warped_loss_has_no_derivative_with_respect_to_the_fixed_image():
    image, fixed = images()
    with pytest.raises(RuntimeError, match="image and displacement alone"):
        dt.warped_loss(image, fixed, field(12, 0.7), "mse").backward()


SECOND = {
    "sampling": lambda m, f, u: dt.warp(m, u),
    "local correlation": lambda m, f, u: dt.lncc(m, f, 3),
    "mutual information": lambda m, f, u: dt.mutual_information(m, f, 8),
    "the mean squared difference": lambda m, f, u: dt.mse(m, f),
    "the exponential": lambda m, f, u: dt.exponential(u, 2),
    "a penalty": lambda m, f, u: dt.bending_energy(u),
    "the Jacobian determinant": lambda m, f, u: dt.jacobian_determinant(u),
    "warped_loss": lambda m, f, u: dt.warped_loss(m, f.detach(), u, "mse"),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_refused_in_one_sentence(name):
    moved, fixed = images()
    u = field(12, 0.7)
    value = SECOND[name](moved, fixed, u).sum()
    wanted = [
        t
        for t, g in zip((moved, u), torch.autograd.grad(value, (moved, u), retain_graph=True, allow_unused=True))
        if g is not None
    ]
    first = torch.autograd.grad(value, wanted, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"second derivative of {name} was asked for \(create_graph=True\)"):
        sum((g * g).sum() for g in first).backward()


def test_a_gaussian_has_second_derivatives():
    assert torch.autograd.gradgradcheck(lambda u: dt.gaussian(u, 0.8) ** 2, (field(9, 0.6, (3, 3, 3)),))


def test_lncc_of_flat_windows_is_finite():
    flat = torch.full((1, 1, 6, 6, 6), 0.5, requires_grad=True)
    value = dt.lncc(flat, torch.rand(1, 1, 6, 6, 6), 3)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(flat.grad).all()


def test_float32_derivatives_of_lncc_agree_with_those_of_the_plain_form():
    moved, fixed = (t.detach() for t in images((1, 2, 12, 13, 11)))
    leaf32, leaf64 = moved.float().requires_grad_(), moved.clone().requires_grad_()
    dt.lncc(leaf32, fixed.float(), 5).backward()
    (-oracles.lncc(leaf64, fixed, [(1.0,) * 5] * 3).mean()).backward()
    difference = (leaf32.grad - leaf64.grad).norm() / leaf64.grad.norm()
    assert difference < 1e-4

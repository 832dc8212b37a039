"""Sampling: ``torch.ops.daskreg.sample``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from daskreg.torch.compute import sampling
from daskreg.torch.compute.sampling import Points, PreparedSampling, Rule
from daskreg.torch.kernels.sampling import AFFINE, AFFINE_ALONE, GRID
from daskreg.torch.launch import empty
from daskreg.torch.operators.derivatives import keep_nothing, operator, refuse
from daskreg.torch.operators.prepared import Prepared


@operator("sample")
def sample(
    image: Tensor,
    field: Tensor,
    affine: Tensor,
    mode: int,
    border: int,
    nearest: bool,
    plus: bool,
    align: bool,
    size: Sequence[int],
) -> Tensor:
    """``compute.sampling.sample``; affine: without one any tensor, which is not read."""
    points = Points(Rule(mode, border, nearest, plus, align), field.contiguous(), affine.contiguous())
    return sampling.sample(image.contiguous(), points, list(size))


@sample.register_fake
def _(image, field, affine, mode, border, nearest, plus, align, size):
    first = 1 if mode == GRID else 2
    shape = tuple(size) if mode == AFFINE_ALONE else tuple(field.shape[first : first + 3])
    return image.new_empty((image.shape[0], image.shape[1], *shape))


@operator("sample_backward")
def sample_backward(
    slope: Tensor, image: Tensor, field: Tensor, affine: Tensor, mode: int, border: int, nearest: bool, plus: bool, align: bool,
    to_image: bool, to_field: bool, to_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The derivatives of ``sample`` with respect to image, field and affine map; (0,) for those that are not asked for."""
    image, slope = image.contiguous(), slope.contiguous()
    points = Points(Rule(mode, border, nearest, plus, align), field.contiguous(), affine.contiguous())
    of_image = torch.zeros_like(image) if to_image else None
    of_field = empty(points.field.shape, image) if to_field else None
    sampling.pull_back(slope, image, points, of_field, of_image)
    of_affine = sampling.affine_sums(slope, image, points) if to_affine else None
    return of_image, of_field, of_affine


@sample_backward.register_fake
def _(slope, image, field, affine, mode, border, nearest, plus, align, to_image, to_field, to_affine):
    none = image.new_empty(0)
    return (
        image.new_empty(image.shape) if to_image else none,
        image.new_empty(field.shape) if to_field else image.new_empty(0),
        image.new_empty(affine.shape) if to_affine else image.new_empty(0),
    )


def _keep_points(ctx: Any, inputs: Any, output: Any) -> None:
    image, field, affine, *rest, _ = inputs
    ctx.save_for_backward(image, field, affine)
    ctx.rest = rest


def _sample_slopes(ctx: Any, slope: Tensor) -> Any:
    to_image, to_field, to_affine, *_ = ctx.needs_input_grad
    needs = to_image, to_field, to_affine and ctx.rest[0] >= AFFINE
    image, field, affine = ctx.saved_tensors
    return *_slopes(needs, slope, image, field, affine, ctx.rest), *(None,) * 6


def _slopes(
    needs: Sequence[bool], slope: Tensor, image: Tensor, field: Tensor, affine: Tensor, rest: Sequence[Any]
) -> Sequence[Tensor | None]:
    found = sample_backward(slope, image, field, affine, *rest, *needs)
    return [made if needed else None for needed, made in zip(needs, found)]


sample.register_autograd(_sample_slopes, setup_context=_keep_points)
sample_backward.register_autograd(refuse("sampling"), setup_context=keep_nothing)


def prepare_sampling(
    image: Tensor, field: Tensor, mode: int, border: int, nearest: bool, plus: bool, align: bool
) -> Prepared | None:
    """``sample`` of tensors like these on a GPU, without an affine map; None where they have too many voxels."""
    rule = Rule(mode, border, nearest, plus, align)
    kernels = PreparedSampling(rule, image.shape, field.shape, image.get_device())
    if not sampling.has_offsets(image.shape, kernels.of.moved):
        return None

    def slopes(needs: Sequence[bool], slope: Tensor, image: Tensor, field: Tensor) -> Any:
        return _slopes((*needs, False), slope, image, field, field, rule)[:2]

    return Prepared(kernels, slopes)

"""Sums over voxels, determinants and filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from daskreg.torch.compute import fields
from daskreg.torch.launch import MAX_GRID, stack
from daskreg.torch.operators.derivatives import Weights, keep_inputs, keep_nothing, operator, refuse
from daskreg.torch.operators.prepared import Prepared


@operator("squared_difference")
def squared_difference(fixed: Tensor, moved: Tensor) -> Tensor:
    """The mean squared difference."""
    return fields.squared_difference(fixed.contiguous(), moved.contiguous(), 1 / fixed.numel())


@squared_difference.register_fake
def _(fixed, moved):
    return fixed.new_empty(())


@operator("squared_difference_backward")
def squared_difference_backward(given: Tensor, fixed: Tensor, moved: Tensor) -> Tensor:
    """Its derivative with respect to ``moved``, times ``given``."""
    return fields.squared_difference_gradient(given, fixed.contiguous(), moved.contiguous(), 1 / fixed.numel())


@squared_difference_backward.register_fake
def _(given, fixed, moved):
    return moved.new_empty(moved.shape)


def _difference_slopes(ctx: Any, given: Tensor) -> Any:
    return _both_slopes(ctx.needs_input_grad, given, *ctx.saved_tensors)


def _both_slopes(needs: Sequence[bool], given: Tensor, fixed: Tensor, moved: Tensor) -> tuple[Tensor | None, Tensor | None]:
    of_fixed = squared_difference_backward(given, moved, fixed) if needs[0] else None
    return of_fixed, squared_difference_backward(given, fixed, moved) if needs[1] else None


squared_difference.register_autograd(_difference_slopes, setup_context=keep_inputs)
squared_difference_backward.register_autograd(refuse("the mean squared difference"), setup_context=keep_nothing)


def prepare_squared_difference(like: Tensor) -> Prepared | None:
    """``squared_difference`` of tensors like one on a GPU; None where it takes several launches."""
    if stack(like.shape)[0] > MAX_GRID:
        return None
    return Prepared(fields.PreparedDifference(like.shape, like.get_device()), _both_slopes)


@operator("penalize")
def penalize(u: Tensor, kind: int) -> Tensor:
    """A mean penalty of a field: of first differences (0: absolute, 1: squared) or second (2, and 3 in fractions of extents)."""
    u = u.contiguous()
    if kind < 2:
        return fields.difference_penalty(u, kind == 1)
    return fields.bending_energy(u, kind == 3, _interior_share(u))


@penalize.register_fake
def _(u, kind):
    return u.new_empty(())


@operator("penalize_backward")
def penalize_backward(given: Tensor, u: Tensor, kind: int) -> Tensor:
    """Its derivative, times ``given``."""
    u = u.contiguous()
    if kind < 2:
        return fields.difference_penalty_gradient(given, u, kind == 1)
    return fields.bending_energy_gradient(given, u, kind == 3, _interior_share(u))


@penalize_backward.register_fake
def _(given, u, kind):
    return u.new_empty(u.shape)


def _interior_share(u: Tensor) -> float:
    batch, channels, nz, ny, nx = u.shape
    return 1 / (batch * channels * (nz - 2) * (ny - 2) * (nx - 2))


def _penalty_slopes(ctx: Any, given: Tensor) -> Any:
    return penalize_backward(given, *ctx.saved_tensors, *ctx.rest), None


penalize.register_autograd(_penalty_slopes, setup_context=keep_inputs)
penalize_backward.register_autograd(refuse("a penalty"), setup_context=keep_nothing)


@operator("determinant")
def determinant(u: Tensor) -> Tensor:
    """det(I + Du)."""
    return fields.determinant(u.contiguous())


@determinant.register_fake
def _(u):
    return u.new_empty((u.shape[0], 1, *u.shape[2:]))


@operator("determinant_backward")
def determinant_backward(slope: Tensor, u: Tensor) -> Tensor:
    """The derivative with respect to u."""
    return fields.determinant_gradient(slope.contiguous(), u.contiguous())


@determinant_backward.register_fake
def _(slope, u):
    return u.new_empty(u.shape)


determinant.register_autograd(lambda ctx, slope: determinant_backward(slope, *ctx.saved_tensors), setup_context=keep_inputs)
determinant_backward.register_autograd(refuse("the Jacobian determinant"), setup_context=keep_nothing)


@operator("filter")
def filtered(source: Tensor, wz: Weights, wy: Weights, wx: Weights, renormalized: bool, transposed: bool) -> Tensor:
    """``compute.fields.filtered``; linear, so that its derivative is the transposed filter, as often as it is asked for."""
    found = fields.filtered(source.contiguous(), (wz, wy, wx), renormalized, transposed)
    return found if found.data_ptr() != source.data_ptr() else found.clone()


@filtered.register_fake
def _(source, wz, wy, wx, renormalized, transposed):
    return source.new_empty(source.shape)


def _filter_slopes(ctx: Any, slope: Tensor) -> Any:
    *rest, transposed = ctx.rest
    return filtered(slope, *rest, not transposed), None, None, None, None, None


filtered.register_autograd(_filter_slopes, setup_context=keep_inputs)

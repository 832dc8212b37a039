"""Mutual information: ``torch.ops.daskreg.information``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from daskreg.torch.compute import information
from daskreg.torch.compute.information import PreparedInformation, Smoothing
from daskreg.torch.kernels.information import ParzenWindow
from daskreg.torch.operators.derivatives import Weights, keep_nothing, operator, refuse
from daskreg.torch.operators.prepared import Prepared


@operator("information", kept=2)
def inform(
    fixed: Tensor,
    moved: Tensor,
    kind: Sequence[int],
    intensities: Weights,
    smoothing: Weights,
    scale: float,
    summed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``scale`` times the mutual information of each batch element (B,), or their sum (), and the tables of its derivatives."""
    fixed, moved, window = fixed.contiguous(), moved.contiguous(), _window(kind, intensities)
    counts = information.empty_histogram(fixed, window)
    information.count(fixed, moved, window, counts)
    a, b, c = smoothing
    batch = len(counts)
    value, *made = information.tables(counts, window, (a, b, c), scale, fixed.dtype, () if summed and batch == 1 else (batch,))
    return value.sum() if summed and batch > 1 else value, made[0], made[1]


@inform.register_fake
def _(fixed, moved, kind, intensities, smoothing, scale, summed):
    batch, edge = fixed.shape[0], kind[1] + 2 * kind[3]
    return fixed.new_empty(() if summed else batch), fixed.new_empty((batch, edge, edge)), fixed.new_empty((batch, edge, edge))


@operator("information_backward")
def inform_backward(
    given: Tensor, table: Tensor, fixed: Tensor, moved: Tensor, kind: Sequence[int], intensities: Weights, scale: float
) -> Tensor:
    """The derivative with respect to ``moved``, whose bins come first in the table."""
    window = _window(kind, intensities)
    factor = scale * fixed.shape[0] / fixed.numel()
    return information.gradient(given.contiguous(), table, fixed.contiguous(), moved.contiguous(), window, factor)


@inform_backward.register_fake
def _(given, table, fixed, moved, kind, intensities, scale):
    return moved.new_empty(moved.shape)


def _window(kind: Sequence[int], intensities: Weights) -> ParzenWindow:
    a, b, c, d = kind
    return ParzenWindow(a, b, c, d, *intensities)


def _keep_tables(ctx: Any, inputs: Any, output: Any) -> None:
    fixed, moved, ctx.kind, ctx.intensities, _, ctx.scale, _ = inputs
    ctx.save_for_backward(fixed, moved, output[1], output[2])
    ctx.set_materialize_grads(False)


def _information_slopes(ctx: Any, given: Tensor | None, *of_tables: Tensor | None) -> Any:
    if given is None:
        return (None,) * 7
    fixed, moved, *tables = ctx.saved_tensors
    return *_slopes(ctx.needs_input_grad, given, fixed, moved, tables, (ctx.kind, ctx.intensities, ctx.scale)), *(None,) * 5


def _slopes(
    needs: Sequence[bool], given: Tensor, fixed: Tensor, moved: Tensor, tables: Sequence[Tensor], rest: tuple[Any, ...]
) -> tuple[Tensor | None, Tensor | None]:
    of_fixed = inform_backward(given, tables[1], moved, fixed, *rest) if needs[0] else None
    return of_fixed, inform_backward(given, tables[0], fixed, moved, *rest) if needs[1] else None


inform.register_autograd(_information_slopes, setup_context=_keep_tables)
inform_backward.register_autograd(refuse("mutual information"), setup_context=keep_nothing)


def prepare_information(window: ParzenWindow, smoothing: Smoothing, scale: float, summed: bool, like: Tensor) -> Prepared:
    """``inform`` of tensors like one on a GPU."""
    kernels = PreparedInformation(window, smoothing, scale, summed, like.shape, like.get_device())

    def slopes(needs: Sequence[bool], given: Tensor, fixed: Tensor, moved: Tensor, tables: Tensor) -> Any:
        return _slopes(needs, given, fixed, moved, list(tables), (window[:4], window[4:], scale))

    return Prepared(kernels, slopes)

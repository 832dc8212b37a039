"""Local correlation: ``torch.ops.daskreg.correlation``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from daskreg.torch.compute import correlation
from daskreg.torch.compute.correlation import PreparedCorrelation, Windows
from daskreg.torch.operators.derivatives import Weights, keep_nothing, operator, refuse
from daskreg.torch.operators.prepared import Prepared


@operator("correlation", kept=1)
def correlate(
    fixed: Tensor, moved: Tensor, wz: Weights, wy: Weights, wx: Weights, constants: Weights, squared: bool, counted: bool,
    per_volume: bool, mapped: bool, kinds: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``compute.correlation.correlate``: the sum () or (B, C), the map, the factors."""
    windows = _windows(wz, wy, wx, constants, squared, counted)
    return correlation.correlate(fixed.contiguous(), moved.contiguous(), windows, kinds, mapped, per_volume, scale)


@correlate.register_fake
def _(fixed, moved, wz, wy, wx, constants, squared, counted, per_volume, mapped, kinds, scale):
    return (
        fixed.new_empty(fixed.shape[:2] if per_volume else ()),
        fixed.new_empty(fixed.shape if mapped else (0,)),
        fixed.new_empty((kinds, *fixed.shape) if kinds else (0,)),
    )


@operator("correlation_backward")
def correlate_backward(
    given: Tensor, weight: Tensor, factors: Tensor, fixed: Tensor, moved: Tensor, wz: Weights, wy: Weights, wx: Weights,
    scale: float, to_fixed: bool, to_moved: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The derivatives of the sum, times ``given``, or of the map, times ``weight`` of each window where it has 5 axes."""
    fixed, moved, given, weight = fixed.contiguous(), moved.contiguous(), given.contiguous(), weight.contiguous()
    windows = _windows(wz, wy, wx, (0.0,) * 5, True, True)
    of_fixed = of_moved = None
    if to_fixed:
        of_fixed = correlation.gradient(given, weight, factors, (0, 3, 4), moved, fixed, windows, scale)
    if to_moved:
        of_moved = correlation.gradient(given, weight, factors, (0, 1, 2), fixed, moved, windows, scale)
    return of_fixed, of_moved


@correlate_backward.register_fake
def _(given, weight, factors, fixed, moved, wz, wy, wx, scale, to_fixed, to_moved):
    return (
        fixed.new_empty(fixed.shape if to_fixed else (0,)),
        fixed.new_empty(fixed.shape if to_moved else (0,)),
    )


def _windows(wz: Weights, wy: Weights, wx: Weights, constants: Weights, squared: bool, counted: bool) -> Windows:
    a, b, c, d, e = constants
    return Windows(tuple(wz), tuple(wy), tuple(wx), a, b, c, d, e, squared, counted)


def _keep_factors(ctx: Any, inputs: Any, output: Any) -> None:
    fixed, moved, wz, wy, wx, _, _, _, _, ctx.mapped, _, ctx.scale = inputs
    ctx.weights = wz, wy, wx
    ctx.save_for_backward(fixed, moved, output[2])
    ctx.set_materialize_grads(False)


def _correlation_slopes(ctx: Any, of_value: Tensor | None, of_map: Tensor | None, *of_factors: Tensor | None) -> Any:
    fixed, moved, factors = ctx.saved_tensors
    if factors is None or factors.numel() == 0:
        raise RuntimeError("daskreg.torch: a correlation made without derivatives was differentiated.")
    given = fixed, moved, factors
    if of_map is not None:  # the map alone: the sum is not returned along with it
        return *_slopes(ctx.needs_input_grad, fixed.new_ones(1), of_map, *given, ctx.weights, 1.0), *(None,) * 10
    if of_value is not None:
        return *_slopes(ctx.needs_input_grad, of_value, of_value, *given, ctx.weights, ctx.scale), *(None,) * 10
    return (None,) * 12


def _slopes(
    needs: Sequence[bool], given: Tensor, weight: Tensor, fixed: Tensor, moved: Tensor, factors: Tensor,
    weights: correlation.Weights, scale: float,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    found = correlate_backward(given, weight, factors, fixed, moved, *weights, scale, needs[0], needs[1])
    return found[0] if needs[0] else None, found[1] if needs[1] else None


correlate.register_autograd(_correlation_slopes, setup_context=_keep_factors)
correlate_backward.register_autograd(refuse("local correlation"), setup_context=keep_nothing)


def prepare_correlation(
    windows: Windows, kinds: int, like: Tensor, per_volume: bool, scale: float, swapped: bool = False
) -> Prepared:
    """``correlate``, without the map, of tensors like one on a GPU."""
    kernels = PreparedCorrelation(windows, kinds, like.shape, per_volume, scale, like.get_device())

    def slopes(needs: Sequence[bool], given: Tensor, fixed: Tensor, moved: Tensor, factors: Tensor) -> Any:
        return _slopes(needs, given, given, fixed, moved, factors, windows.weights, scale)

    return Prepared(kernels, slopes, swapped)

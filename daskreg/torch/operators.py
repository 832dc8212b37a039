"""The operators of ``torch.ops.daskreg``: what PyTorch's compiler, autograd and ``opcheck`` see.

Each derivative is an operator of its own, so that a compiled backward pass contains it, and a second derivative is refused in one
sentence. Operators take tensors of one type, float32 (or float64 on a CPU), and make contiguous results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from daskreg.torch.compute import correlation, fields, information, sampling
from daskreg.torch.compute.correlation import Windows
from daskreg.torch.compute.sampling import Points
from daskreg.torch.kernels.information import ParzenWindow
from daskreg.torch.kernels.sampling import AFFINE_ALONE, GRID

Weights = Sequence[float]


def refuse(name: str) -> Callable[..., Any]:
    """The derivative of an operator that is a derivative itself."""

    def backward(context: Any, *slopes: Any) -> Any:
        raise RuntimeError(
            f"daskreg.torch: the second derivative of {name} was asked for (create_graph=True); only first derivatives are there."
        )

    return backward


def _keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """Second derivatives are refused."""


# ---------------------------------------------------------------- sampling


@custom_op("daskreg::sample", mutates_args=())
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
    """``compute.sampling.sample``."""
    points = Points(mode, border, nearest, plus, align, field.contiguous(), affine.contiguous())
    return sampling.sample(image.contiguous(), points, list(size))


@sample.register_fake
def _(image, field, affine, mode, border, nearest, plus, align, size):
    first = 1 if mode == GRID else 2
    shape = tuple(size) if mode == AFFINE_ALONE else tuple(field.shape[first : first + 3])
    return image.new_empty((image.shape[0], image.shape[1], *shape))


@custom_op("daskreg::sample_backward", mutates_args=())
def sample_backward(
    slope: Tensor, image: Tensor, field: Tensor, affine: Tensor, mode: int, border: int, nearest: bool, plus: bool, align: bool,
    to_image: bool, to_field: bool, to_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The derivatives of ``sample`` with respect to image, field and affine map; (0,) for those that are not asked for."""
    image, slope = image.contiguous(), slope.contiguous()
    points = Points(mode, border, nearest, plus, align, field.contiguous(), affine.contiguous())
    of_image = torch.zeros_like(image) if to_image else image.new_empty(0)
    of_field = torch.empty_like(points.field) if to_field else image.new_empty(0)
    sampling.pull_back(slope, image, points, of_field if to_field else None, of_image if to_image else None)
    of_affine = sampling.affine_sums(slope, image, points) if to_affine else image.new_empty(0)
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
    image, field, affine = ctx.saved_tensors
    needs = ctx.needs_input_grad
    found = sample_backward(slope, image, field, affine, *ctx.rest, needs[0], needs[1], needs[2])
    return *(g if needed else None for g, needed in zip(found, needs)), *(None,) * 6


sample.register_autograd(_sample_slopes, setup_context=_keep_points)
sample_backward.register_autograd(refuse("sampling"), setup_context=_keep_nothing)


# ---------------------------------------------------------------- local correlation


@custom_op("daskreg::correlation", mutates_args=())
def correlate(
    fixed: Tensor, moved: Tensor, wz: Weights, wy: Weights, wx: Weights, constants: Weights, squared: bool, counted: bool,
    per_volume: bool, mapped: bool, kinds: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``compute.correlation.correlate``: the sum () or (B, C), the map, the factors."""
    windows = _windows(wz, wy, wx, constants, squared, counted)
    value, found, factors = correlation.correlate(
        fixed.contiguous(), moved.contiguous(), windows, kinds, mapped, per_volume, scale
    )
    return value.reshape(fixed.shape[:2] if per_volume else ()), found, factors


@correlate.register_fake
def _(fixed, moved, wz, wy, wx, constants, squared, counted, per_volume, mapped, kinds, scale):
    return (
        fixed.new_empty(fixed.shape[:2] if per_volume else ()),
        fixed.new_empty(fixed.shape if mapped else (0,)),
        fixed.new_empty((kinds, *fixed.shape) if kinds else (0,)),
    )


@custom_op("daskreg::correlation_backward", mutates_args=())
def correlate_backward(
    given: Tensor, weight: Tensor, factors: Tensor, fixed: Tensor, moved: Tensor, wz: Weights, wy: Weights, wx: Weights,
    scale: float, to_fixed: bool, to_moved: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The derivatives of the sum, times ``given``, or of the map, times ``weight`` of each window where it is not (0,)."""
    fixed, moved, given, weight = fixed.contiguous(), moved.contiguous(), given.contiguous(), weight.contiguous()
    windows = _windows(wz, wy, wx, (0.0,) * 5, True, True)
    none = fixed.new_empty(0)
    of_fixed = correlation.gradient(given, weight, factors, (0, 3, 4), moved, fixed, windows, scale) if to_fixed else none
    none = fixed.new_empty(0)
    of_moved = correlation.gradient(given, weight, factors, (0, 1, 2), fixed, moved, windows, scale) if to_moved else none
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


def _correlation_slopes(ctx: Any, of_value: Tensor | None, of_map: Tensor | None, of_factors: Tensor | None) -> Any:
    fixed, moved, factors = ctx.saved_tensors
    if factors.numel() == 0:
        raise RuntimeError("daskreg.torch: a correlation made without derivatives was differentiated.")
    needs = ctx.needs_input_grad
    if of_map is not None:  # the map alone: the sum is not returned along with it
        found = correlate_backward(fixed.new_ones(1), of_map, factors, fixed, moved, *ctx.weights, 1.0, needs[0], needs[1])
    elif of_value is not None:
        none = fixed.new_empty(0)
        found = correlate_backward(of_value.reshape(-1), none, factors, fixed, moved, *ctx.weights, ctx.scale, needs[0], needs[1])
    else:
        return (None,) * 12
    return found[0] if needs[0] else None, found[1] if needs[1] else None, *(None,) * 10


correlate.register_autograd(_correlation_slopes, setup_context=_keep_factors)
correlate_backward.register_autograd(refuse("local correlation"), setup_context=_keep_nothing)


# ---------------------------------------------------------------- mutual information


@custom_op("daskreg::information", mutates_args=())
def inform(
    fixed: Tensor, moved: Tensor, kind: Sequence[int], intensities: Weights, smoothing: Weights, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``scale`` times the mutual information of each batch element (B,), and the tables of its derivatives."""
    fixed, moved, window = fixed.contiguous(), moved.contiguous(), _window(kind, intensities)
    counts = information.empty_histogram(fixed, window)
    information.count(fixed, moved, window, counts)
    a, b, c = smoothing
    return information.tables(counts, window, (a, b, c), scale, fixed.dtype)


@inform.register_fake
def _(fixed, moved, kind, intensities, smoothing, scale):
    batch, edge = fixed.shape[0], kind[1] + 2 * kind[3]
    return fixed.new_empty(batch), fixed.new_empty((batch, edge, edge)), fixed.new_empty((batch, edge, edge))


@custom_op("daskreg::information_backward", mutates_args=())
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
    fixed, moved, ctx.kind, ctx.intensities, _, ctx.scale = inputs
    ctx.save_for_backward(fixed, moved, output[1], output[2])
    ctx.set_materialize_grads(False)


def _information_slopes(ctx: Any, given: Tensor | None, *of_tables: Tensor | None) -> Any:
    if given is None:
        return (None,) * 6
    fixed, moved, to_moved, to_fixed = ctx.saved_tensors
    rest = ctx.kind, ctx.intensities, ctx.scale
    of_fixed = inform_backward(given, to_fixed, moved, fixed, *rest) if ctx.needs_input_grad[0] else None
    of_moved = inform_backward(given, to_moved, fixed, moved, *rest) if ctx.needs_input_grad[1] else None
    return of_fixed, of_moved, *(None,) * 4


inform.register_autograd(_information_slopes, setup_context=_keep_tables)
inform_backward.register_autograd(refuse("mutual information"), setup_context=_keep_nothing)


# ---------------------------------------------------------------- sums over voxels, determinants and filters


@custom_op("daskreg::squared_difference", mutates_args=())
def squared_difference(fixed: Tensor, moved: Tensor) -> Tensor:
    """The mean squared difference."""
    return fields.squared_difference(fixed.contiguous(), moved.contiguous(), 1 / fixed.numel()).reshape(())


@squared_difference.register_fake
def _(fixed, moved):
    return fixed.new_empty(())


@custom_op("daskreg::squared_difference_backward", mutates_args=())
def squared_difference_backward(given: Tensor, fixed: Tensor, moved: Tensor) -> Tensor:
    """Its derivative with respect to ``moved``, times ``given``."""
    return fields.squared_difference_gradient(given, fixed.contiguous(), moved.contiguous(), 1 / fixed.numel())


@squared_difference_backward.register_fake
def _(given, fixed, moved):
    return moved.new_empty(moved.shape)


def _keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    tensors = [v for v in inputs if isinstance(v, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.rest = inputs[len(tensors) :]


def _difference_slopes(ctx: Any, given: Tensor) -> Any:
    fixed, moved = ctx.saved_tensors
    of_fixed = squared_difference_backward(given, moved, fixed) if ctx.needs_input_grad[0] else None
    return of_fixed, squared_difference_backward(given, fixed, moved) if ctx.needs_input_grad[1] else None


squared_difference.register_autograd(_difference_slopes, setup_context=_keep_inputs)
squared_difference_backward.register_autograd(refuse("the mean squared difference"), setup_context=_keep_nothing)


@custom_op("daskreg::penalize", mutates_args=())
def penalize(u: Tensor, kind: int) -> Tensor:
    """A mean penalty of a field: of first differences (0: absolute, 1: squared) or second (2, and 3 in fractions of extents)."""
    u = u.contiguous()
    if kind < 2:
        return fields.difference_penalty(u, kind == 1).reshape(())
    return fields.bending_energy(u, kind == 3, _interior_share(u)).reshape(())


@penalize.register_fake
def _(u, kind):
    return u.new_empty(())


@custom_op("daskreg::penalize_backward", mutates_args=())
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


penalize.register_autograd(_penalty_slopes, setup_context=_keep_inputs)
penalize_backward.register_autograd(refuse("a penalty"), setup_context=_keep_nothing)


@custom_op("daskreg::determinant", mutates_args=())
def determinant(u: Tensor) -> Tensor:
    """det(I + Du)."""
    return fields.determinant(u.contiguous())


@determinant.register_fake
def _(u):
    return u.new_empty((u.shape[0], 1, *u.shape[2:]))


@custom_op("daskreg::determinant_backward", mutates_args=())
def determinant_backward(slope: Tensor, u: Tensor) -> Tensor:
    """The derivative with respect to u."""
    return fields.determinant_gradient(slope.contiguous(), u.contiguous())


@determinant_backward.register_fake
def _(slope, u):
    return u.new_empty(u.shape)


determinant.register_autograd(lambda ctx, slope: determinant_backward(slope, *ctx.saved_tensors), setup_context=_keep_inputs)
determinant_backward.register_autograd(refuse("the Jacobian determinant"), setup_context=_keep_nothing)


@custom_op("daskreg::filter", mutates_args=())
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


filtered.register_autograd(_filter_slopes, setup_context=_keep_inputs)


# ---------------------------------------------------------------- scaling and squaring


@custom_op("daskreg::exponential", mutates_args=())
def exponential(velocity: Tensor, steps: int, border: int) -> Tensor:
    """The displacement exp(v) - Id after ``steps`` compositions; no other field is kept."""
    u = velocity.contiguous() / 2**steps
    for _ in range(steps):
        u = _squared_map(u, border)
    return u if steps else u.clone()


@exponential.register_fake
def _(velocity, steps, border):
    return velocity.new_empty(velocity.shape)


@custom_op("daskreg::exponential_backward", mutates_args=())
def exponential_backward(slope: Tensor, velocity: Tensor, steps: int, border: int) -> Tensor:
    """Its derivative; the fields of all steps are computed again."""
    steps_before = [velocity.contiguous() / 2**steps]
    for _ in range(steps - 1):
        steps_before.append(_squared_map(steps_before[-1], border))
    slope = slope.contiguous()
    for u in reversed(steps_before if steps else []):
        points = _composition(u, border)
        of_image, of_field = torch.zeros_like(u), torch.empty_like(u)
        sampling.pull_back(slope, u, points, of_field, of_image)
        slope = of_image.add_(of_field)
    return slope / 2**steps


@exponential_backward.register_fake
def _(slope, velocity, steps, border):
    return velocity.new_empty(velocity.shape)


def _composition(u: Tensor, border: int) -> Points:
    return Points(0, border, False, True, True, u, u.new_zeros((1, 3, 4)))


def _squared_map(u: Tensor, border: int) -> Tensor:
    return sampling.sample(u, _composition(u, border), [])


def _exponential_slopes(ctx: Any, slope: Tensor) -> Any:
    return exponential_backward(slope, *ctx.saved_tensors, *ctx.rest), None, None


exponential.register_autograd(_exponential_slopes, setup_context=_keep_inputs)
exponential_backward.register_autograd(refuse("the exponential"), setup_context=_keep_nothing)

"""A loss between a fixed image and an image at the points of a map, without the moved image.

Mean squared differences are one pass over the voxels. For the others one channel after the other is sampled into the same memory,
compared, and its derivative pulled back, so that memory does not grow with the channels. Derivatives are made along with the
loss, where any is asked for, because they cost less there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from daskreg.torch.compute import correlation, information, sampling
from daskreg.torch.compute.correlation import Windows
from daskreg.torch.compute.sampling import Points, Rule
from daskreg.torch.kernels.information import ParzenWindow
from daskreg.torch.operators.derivatives import Weights, keep_nothing, operator, refuse

MSE, LNCC, MI = range(3)


@operator("warped_loss")
def warped(
    fixed: Tensor, image: Tensor, field: Tensor, affine: Tensor, mode: int, border: int, loss: int, integers: Sequence[int],
    numbers: Weights, wz: Weights, wy: Weights, wx: Weights, to_image: bool, to_field: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss (), and its derivatives with respect to image and field; (0,) for those that are not asked for.

    integers, numbers: of LNCC ``squared, counted`` and the five constants; of MI the window's kind, bins, taps, pad, and its five
    intensities, then the three constants of smoothing
    """
    fixed, image = fixed.contiguous(), image.contiguous()
    points = Points(Rule(mode, border, False, False, True), field.contiguous(), affine.contiguous())
    of_image = torch.zeros_like(image) if to_image else image.new_empty(0)
    of_field = torch.zeros_like(points.field) if to_field else image.new_empty(0)
    into = of_field if to_field else None, of_image if to_image else None
    if loss == MSE:
        value = _squares(fixed, image, points, *into)
    elif loss == LNCC:
        a, b, c, d, e = numbers
        windows = Windows(tuple(wz), tuple(wy), tuple(wx), a, b, c, d, e, bool(integers[0]), bool(integers[1]))
        value = _correlation(fixed, image, points, windows, *into)
    else:
        k, bins, taps, pad = integers
        value = _information(fixed, image, points, ParzenWindow(k, bins, taps, pad, *numbers[:5]), tuple(numbers[5:]), *into)
    return value, of_image, of_field


@warped.register_fake
def _(fixed, image, field, affine, mode, border, loss, integers, numbers, wz, wy, wx, to_image, to_field):
    return (
        fixed.new_empty(()),
        image.new_empty(image.shape if to_image else (0,)),
        image.new_empty(field.shape if to_field else (0,)),
    )


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.set_materialize_grads(False)


def _slopes(ctx: Any, given: Tensor | None, *others: Tensor | None) -> Any:
    none: list[Any] = [None] * 14
    if given is None:
        return tuple(none)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
        raise RuntimeError("daskreg.torch: warped_loss has derivatives with respect to image and displacement alone.")
    of_image, of_field = ctx.saved_tensors
    none[1] = scaled(given, of_image) if ctx.needs_input_grad[1] else None
    none[2] = scaled(given, of_field) if ctx.needs_input_grad[2] else None
    return tuple(none)


@operator("warped_loss_backward")
def scaled(given: Tensor, slope: Tensor) -> Tensor:
    """A derivative times what it is given."""
    return slope * given


@scaled.register_fake
def _(given, slope):
    return slope.new_empty(slope.shape)


warped.register_autograd(_slopes, setup_context=_keep)
scaled.register_autograd(refuse("warped_loss"), setup_context=keep_nothing)


def _channels(image: Tensor, points: Points) -> Any:
    """Each channel's number, and the image there."""
    for c in range(image.shape[1]):
        yield c, sampling.sample(image, points, [], c, c + 1)


def _squares(fixed: Tensor, image: Tensor, points: Points, to_field: Tensor | None, to_image: Tensor | None) -> Tensor:
    share = 1 / fixed.numel()
    value = sampling.squares(fixed, image, points, share, to_field)
    if to_image is not None:
        for c, moved in _channels(image, points):
            slope = moved.sub_(fixed[:, c : c + 1]).mul_(2 * share)
            sampling.pull_back(slope, image, points, None, to_image, c, c + 1)
    return value


def _correlation(
    fixed: Tensor, image: Tensor, points: Points, windows: Windows, to_field: Tensor | None, to_image: Tensor | None
) -> Tensor:
    share, kinds = -1 / fixed.numel(), 3 if to_field is not None or to_image is not None else 0
    value, one = fixed.new_zeros(()), fixed.new_ones(1)
    for c, moved in _channels(image, points):
        against = fixed[:, c : c + 1].contiguous()
        part, _, factors = correlation.correlate(against, moved, windows, kinds, False, False, share)
        value += part
        if factors is not None:
            slope = correlation.gradient(one, one, factors, (0, 1, 2), against, moved, windows, share)
            del factors
            sampling.pull_back(slope, image, points, to_field, to_image, c, c + 1, accumulate=c > 0)
    return value


def _information(
    fixed: Tensor,
    image: Tensor,
    points: Points,
    window: ParzenWindow,
    smoothing: Any,
    to_field: Tensor | None,
    to_image: Tensor | None,
) -> Tensor:
    counts = information.empty_histogram(fixed, window)
    for c, moved in _channels(image, points):
        information.count(fixed[:, c : c + 1].contiguous(), moved, window, counts)
    batch = fixed.shape[0]
    value, table, _ = information.tables(counts, window, smoothing, -1 / batch, fixed.dtype, (batch,))
    if to_field is not None or to_image is not None:
        one, factor = fixed.new_ones(1), -1 / fixed.numel()
        for c, moved in _channels(image, points):
            slope = information.gradient(one, table, fixed[:, c : c + 1].contiguous(), moved, window, factor)
            sampling.pull_back(slope, image, points, to_field, to_image, c, c + 1, accumulate=c > 0)
    return value.sum()


LOSSES: dict[str, int] = {"mse": MSE, "lncc": LNCC, "mi": MI}

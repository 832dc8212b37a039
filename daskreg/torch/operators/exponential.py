"""Scaling and squaring: ``torch.ops.daskreg.exponential``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from daskreg.torch.compute import sampling
from daskreg.torch.compute.sampling import Points, Rule
from daskreg.torch.kernels.sampling import DISPLACEMENT
from daskreg.torch.operators.derivatives import keep_inputs, keep_nothing, operator, refuse


@operator("exponential")
def exponential(velocity: Tensor, steps: int, border: int) -> Tensor:
    """The displacement exp(v) - Id after ``steps`` compositions; no other field is kept."""
    u = velocity.contiguous() / 2**steps
    for _ in range(steps):
        u = _squared_map(u, border)
    return u if steps else u.clone()


@exponential.register_fake
def _(velocity, steps, border):
    return velocity.new_empty(velocity.shape)


@operator("exponential_backward")
def exponential_backward(slope: Tensor, velocity: Tensor, steps: int, border: int) -> Tensor:
    """Its derivative; the fields of all steps are computed again."""
    steps_before = [velocity.contiguous() / 2**steps]
    for _ in range(steps - 1):
        steps_before.append(_squared_map(steps_before[-1], border))
    slope = slope.contiguous()
    for u in reversed(steps_before if steps else []):
        slope = sampling.pull_back_squared(slope, u, _composition(u, border))
    return slope / 2**steps


@exponential_backward.register_fake
def _(slope, velocity, steps, border):
    return velocity.new_empty(velocity.shape)


def _composition(u: Tensor, border: int) -> Points:
    return Points(Rule(DISPLACEMENT, border, False, True, True), u, u)


def _squared_map(u: Tensor, border: int) -> Tensor:
    return sampling.sample(u, _composition(u, border), [])


def _exponential_slopes(ctx: Any, slope: Tensor) -> Any:
    return exponential_backward(slope, *ctx.saved_tensors, *ctx.rest), None, None


exponential.register_autograd(_exponential_slopes, setup_context=keep_inputs)
exponential_backward.register_autograd(refuse("the exponential"), setup_context=keep_nothing)

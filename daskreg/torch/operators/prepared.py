"""Functions of two CUDA tensors that are prepared at the first call for their shapes: only addresses are left to write.

Kernels, and so bits, are those of the operators, which also compute what is not prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from daskreg.torch.direct_launch import MOST_LAUNCHES, current_device
from daskreg.torch.operators import derivatives
from daskreg.torch.operators.derivatives import PLAIN

Needs = tuple[bool, bool]
Derivatives = tuple[Tensor | None, Tensor | None]
FLOAT32 = torch.float32
_PREPARED: dict[tuple[Any, ...], Prepared] = {}
_keys, _modes, _functions, _transforms, _trace = derivatives.of_pytorch[:5]
_recording, _compiling = torch.is_grad_enabled, torch.compiler.is_compiling


class Kernels(Protocol):
    """Launches for two contiguous float32 tensors of given shapes on the current device."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """The result, and what its derivatives need besides both tensors."""

    def backward(self, needs: Needs, given: Tensor, first: Tensor, second: Tensor, *kept: Tensor) -> Derivatives | None:
        """The derivatives that are needed, from that with respect to the result; None: not prepared."""


class Prepared:
    """A function of two tensors of given shapes.

    slopes: the derivatives by operators, with the arguments of ``Kernels.backward``;  swapped: whether the kernels are given the
    second tensor first
    """

    def __init__(self, kernels: Kernels, slopes: Callable[..., Derivatives], swapped: bool = False) -> None:
        self.kernels, self.slopes, self.swapped = kernels, slopes, swapped

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """The result; it has derivatives."""
        if self.swapped:
            first, second = second, first
        if _recording() and derivatives.differentiable((first, second)):
            found: Tensor = _apply(self, first, second)
            return found
        return self.kernels.forward(first, second)[0]


class PreparedFunction(torch.autograd.Function):
    """What autograd keeps of a prepared call."""

    @staticmethod
    def forward(ctx: Any, prepared: Prepared, first: Tensor, second: Tensor) -> Tensor:
        """The result."""
        found, *kept = prepared.kernels.forward(first, second)
        ctx.save_for_backward(first, second, *kept)
        ctx.prepared = prepared
        return found

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Any:
        """The derivatives that are needed, prepared or by operators."""
        prepared, needs, saved = ctx.prepared, ctx.needs_input_grad[1:], ctx.saved_tensors
        found = None
        if not _recording() and direct(given, *saved):
            found = prepared.kernels.backward(needs, given, *saved)
        return None, *(found or prepared.slopes(needs, given, *saved))


_apply: Callable[..., Any] = super(torch.autograd.Function, PreparedFunction).apply  # without what its own does for transforms


def direct(*tensors: Tensor) -> bool:
    """Whether tensors are contiguous, float32 and on the current CUDA device, and nothing but autograd looks at them."""
    if _compiling() or not (tensors[0].is_cuda and derivatives.KNOWN) or forward_ad._current_level >= 0:
        return False
    if _modes() or _functions() or _transforms() or _trace() is not None:
        return False
    index, keys = current_device(), derivatives.plain_keys(tensors[0].is_cpu)
    for t in tensors:
        if type(t) not in PLAIN or t.dtype is not FLOAT32 or t.get_device() != index or not t.is_contiguous():
            return False
        if _keys(t).raw_repr() != keys:
            return False
    return True


prepared = _PREPARED.get


def keep(key: tuple[Any, ...], made: Prepared) -> Prepared:
    """``made``, which ``prepared(key)`` gives from now on."""
    if len(_PREPARED) >= MOST_LAUNCHES:
        _PREPARED.clear()
    _PREPARED[key] = made
    return made

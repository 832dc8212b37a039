"""Operators with derivatives, and what their derivatives share.

An operator is registered with PyTorch, so that compilers, tracers, transforms and subclasses of tensors see it. Each of its calls
takes 20 to 40 microseconds there. Plain tensors that nothing but autograd looks at take the same functions directly, in an
``autograd.Function`` where a derivative may be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import custom_op
from torch.nn import Parameter

from daskreg.torch.checks import known

Weights = Sequence[float]  # the type of an argument of an operator
Setup = Callable[[Any, Any, Any], None]
PLAIN = frozenset((Tensor, Parameter))  # types that nobody has redefined operators for
INTERNAL = ("_dispatch_keys", "_len_torch_dispatch_stack", "_is_torch_function_mode_enabled", "_are_functorch_transforms_active",
            "_get_tracing_state", "_dispatch_tls_is_dispatch_key_excluded", "_any_requires_grad")  # fmt: skip
of_pytorch: list[Any] = [getattr(torch._C, name, None) for name in INTERNAL]  # what tells plain tensors
KNOWN = None not in of_pytorch  # else a later PyTorch has no more of one of them: all calls take its dispatcher
_keys, _modes, _functions, _transforms, _trace, _excluded, _any_requires_grad = of_pytorch
_recording, _compiling = torch.is_grad_enabled, torch.compiler.is_compiling
AUTOGRAD = torch._C.DispatchKey.AutogradCUDA, torch._C.DispatchKey.AutogradCPU


class Operator:
    """``torch.ops.daskreg.<name>`` of a function whose first arguments are tensors, and whose results alias none of them.

    ``registered`` is PyTorch's operator, which returns (0,) where the function returns None;  kept: last results that are for
    the derivative alone. Autograd does not look at them where plain tensors are given: they must not be all that a derivative
    depends on, else its own derivative is not refused.
    """

    def __init__(self, name: str, forward: Callable[..., Any], kept: int = 0) -> None:
        self.name, self.forward, self.kept, self.__doc__ = name, forward, kept, forward.__doc__
        self.registered = custom_op(f"daskreg::{name}", mutates_args=())(_for_dispatcher(forward))
        self.register_fake = self.registered.register_fake
        self.tensors = sum(kind in ("Tensor", Tensor) for key, kind in forward.__annotations__.items() if key != "return")
        self.apply: Callable[..., Any] = self.registered

    def register_autograd(self, backward: Callable[..., Any], setup_context: Setup) -> None:
        """As of PyTorch's operators: backward (ctx, *slopes) and setup_context (ctx, inputs, output)."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        self.apply = _apply(f"daskreg::{self.name}", self.forward, backward, setup_context, self.kept)

    def __call__(self, *arguments: Any) -> Any:
        """Compute; what is returned has derivatives."""
        if not KNOWN or _compiling():
            return self.registered(*arguments)
        tensors = arguments[: self.tensors]
        if forward_ad._current_level >= 0:
            _refuse_tangents(self.name, tensors)
        if not seen_by_autograd_alone(tensors):
            return self.registered(*arguments)
        if _recording() and differentiable(tensors):
            return self.apply(*arguments)
        return self.forward(*arguments)


def operator(name: str, kept: int = 0) -> Callable[[Callable[..., Any]], Operator]:
    """Make an operator of a function, see ``Operator``."""
    return lambda forward: Operator(name, forward, kept)


def _for_dispatcher(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that refuses tensors of types that kernels are not compiled for, and returns (0,) in place of None."""

    @wraps(forward)
    def registered(*arguments: Any, **named: Any) -> Any:
        tensors = [a for a in (*arguments, *named.values()) if isinstance(a, Tensor)]
        known(tensors)
        found = forward(*arguments, **named)
        if isinstance(found, tuple):
            return tuple(tensors[0].new_empty(0) if f is None else f for f in found)
        return found

    return registered


def seen_by_autograd_alone(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are PyTorch's own, and no mode, transform or tracer waits for operators on them."""
    if _modes() or _functions() or _transforms() or _trace() is not None:
        return False
    return not [t for t in tensors if type(t) not in PLAIN or _keys(t).raw_repr() != plain_keys(t.is_cpu)]


@cache
def plain_keys(on_cpu: bool) -> int:
    """What PyTorch's dispatcher knows of a plain tensor; views that are not yet negated, or are inside a transform, have more."""
    with torch.inference_mode(False):  # whose tensors have fewer
        return int(_keys(torch.empty(0, device="cpu" if on_cpu else "cuda")).raw_repr())


def _refuse_tangents(name: str, tensors: Sequence[Tensor]) -> None:
    """Forward-mode derivatives would be lost without a word, with PyTorch's dispatcher too."""
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            f"daskreg.torch: a forward-mode derivative of daskreg::{name} was asked for (torch.func.jvp, dual tensors); only "
            "reverse-mode derivatives are there."
        )


def differentiable(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd records what is computed from tensors, where it records."""
    return _any_requires_grad(*tensors) and not _excluded(AUTOGRAD[tensors[0].is_cpu])


def _apply(name: str, forward: Callable[..., Any], backward: Callable[..., Any], setup: Setup, kept: int) -> Callable[..., Any]:
    """An ``autograd.Function`` of the functions that are registered, without what its own ``apply`` does for transforms."""

    def keep(ctx: Any, *arguments: Any) -> Any:
        output = forward(*arguments)
        setup(ctx, arguments, output)
        return (*output[:-kept], *(None,) * kept) if kept else output

    function: Any = type(name, (torch.autograd.Function,), {"forward": staticmethod(keep), "backward": staticmethod(backward)})
    applied: Callable[..., Any] = super(torch.autograd.Function, function).apply
    return applied


def refuse(name: str) -> Callable[..., Any]:
    """The derivative of an operator that is a derivative itself."""

    def backward(context: Any, *slopes: Any) -> Any:
        raise RuntimeError(
            f"daskreg.torch: the second derivative of {name} was asked for (create_graph=True); only first derivatives are there."
        )

    return backward


def keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """Second derivatives are refused."""


def keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    """Tensors in ``ctx.saved_tensors``, what follows them in ``ctx.rest``."""
    tensors = [v for v in inputs if isinstance(v, Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.rest = inputs[len(tensors) :]

"""What the derivatives of operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Weights = Sequence[float]  # the type of an argument of an operator


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

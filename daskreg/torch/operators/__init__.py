"""The operators of ``torch.ops.daskreg``: what PyTorch's compiler, autograd and ``opcheck`` see.

Each derivative is an operator of its own, so that a compiled backward pass contains it, and a second derivative is refused in one
sentence. Operators take tensors of one type, float32 (or float64 on a CPU), and make contiguous results.
"""

from daskreg.torch.operators.correlation import correlate, correlate_backward, prepare_correlation
from daskreg.torch.operators.exponential import exponential, exponential_backward
from daskreg.torch.operators.fields import (
    determinant,
    determinant_backward,
    filtered,
    penalize,
    penalize_backward,
    prepare_squared_difference,
    squared_difference,
    squared_difference_backward,
)
from daskreg.torch.operators.information import inform, inform_backward, prepare_information
from daskreg.torch.operators.sampling import prepare_sampling, sample, sample_backward

__all__ = [
    "correlate",
    "correlate_backward",
    "determinant",
    "determinant_backward",
    "exponential",
    "exponential_backward",
    "filtered",
    "inform",
    "inform_backward",
    "penalize",
    "penalize_backward",
    "prepare_correlation",
    "prepare_information",
    "prepare_sampling",
    "prepare_squared_difference",
    "sample",
    "sample_backward",
    "squared_difference",
    "squared_difference_backward",
]

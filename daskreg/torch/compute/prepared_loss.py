"""What prepared losses of two images have in common: the derivative with respect to the second."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from daskreg.torch.direct_launch import LaunchSequence


class PreparedLoss(ABC):
    """A loss of contiguous CUDA tensors of one shape; ``out`` allocates its derivative."""

    out: Callable[[], torch.Tensor]

    @property
    @abstractmethod
    def slopes(self) -> LaunchSequence:
        """The derivative, of the addresses: with respect to the loss, what was kept of it, fixed, moved, the result."""

    def backward(
        self, needs: Any, given: torch.Tensor, fixed: torch.Tensor, moved: torch.Tensor, *kept: torch.Tensor
    ) -> tuple[None, torch.Tensor] | None:
        """The derivative with respect to ``moved`` alone; None where that of ``fixed`` is needed."""
        if needs[0]:
            return None
        out = self.out()
        self.slopes(given.data_ptr(), *[t.data_ptr() for t in kept], fixed.data_ptr(), moved.data_ptr(), out.data_ptr())
        return None, out

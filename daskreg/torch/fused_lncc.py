"""Stands for ``fused_lncc``: ``from daskreg.torch.fused_lncc import fused_lncc_loss``.

After fused-lncc 0.1, with any odd window, on CPUs too, and with a derivative with respect to the target where it needs one.
"""

from __future__ import annotations

from torch import Tensor

from daskreg.torch import functional


def fused_lncc_loss(pred: Tensor, target: Tensor, kernel_size: int = 7, smooth_dr: float = 1e-5) -> Tensor:
    """1 minus the mean squared local correlation, at most 1 each, ``smooth_dr`` added to both variances: ()."""
    return 1 + functional.lncc(pred, target, kernel_size, additive=smooth_dr, epsilon=0.0, limit=1.0)

"""Stands for ``monai.losses`` and ``monai.networks.blocks``: the same names, arguments, results and shapes, for volumes.

    from daskreg.torch.monai import LocalNormalizedCrossCorrelationLoss, Warp

After MONAI 1.6. Images are (B, C, H, W, D), displacements (B, 3, H, W, D) in voxels. Images in one or two dimensions, ``jitter``,
and the B-spline windows of mutual information are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import functional
from daskreg.torch.checks import one_of
from daskreg.torch.windows import window_weights

REDUCTIONS = ("mean", "sum", "none")


def _reduction(reduction: Any) -> Any:
    """A word, or MONAI's enumeration of words."""
    name = str(getattr(reduction, "value", reduction))
    one_of("reduction", name, REDUCTIONS)
    return name


class LocalNormalizedCrossCorrelationLoss(torch.nn.Module):
    """Minus the squared local correlation (cross^2 + smooth_nr) / (var var), each variance at least ``smooth_dr``.

    kernel_type: "rectangular", "triangular" or "gaussian" (sigma kernel_size / 3); voxels beyond the faces are zeros.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 3,
        kernel_type: Any = "rectangular",
        reduction: Any = "mean",
        smooth_nr: float = 0.0,
        smooth_dr: float = 1e-5,
    ) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise DaskregError(f"spatial_dims is {spatial_dims}; 3 was expected.")
        window_weights(kernel_size, kernel_type)  # refuses other words
        self.kernel_size, self.kernel_type, self.reduction = kernel_size, kernel_type, _reduction(reduction)
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, (), or of each voxel for the reduction "none"."""
        return functional.lncc(
            pred, target, self.kernel_size, kind=self.kernel_type, floor=self.smooth_dr, epsilon=0.0, numerator=self.smooth_nr,
            reduction=self.reduction,
        )  # fmt: skip


class GlobalMutualInformationLoss(torch.nn.Module):
    """Minus the mutual information of each batch element, all channels together, with Gaussian windows over [0, 1]."""

    def __init__(
        self,
        kernel_type: str = "gaussian",
        num_bins: int = 23,
        sigma_ratio: float = 0.5,
        reduction: Any = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
    ) -> None:
        super().__init__()
        one_of("kernel_type", kernel_type, ("gaussian",))
        self.num_bins, self.sigma_ratio, self.reduction = num_bins, sigma_ratio, _reduction(reduction)
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, (), or (B,) for the reduction "none"."""
        return functional.mutual_information(
            pred, target, self.num_bins, sigma_ratio=self.sigma_ratio, numerator=self.smooth_nr, denominator=self.smooth_dr,
            reduction=self.reduction,
        )  # fmt: skip


class BendingEnergyLoss(torch.nn.Module):
    """The squared second differences of a displacement at interior voxels."""

    def __init__(self, normalize: bool = False, reduction: Any = "mean") -> None:
        super().__init__()
        self.normalize, self.reduction = normalize, _reduction(reduction)
        one_of("reduction", self.reduction, ("mean", "sum"))

    def forward(self, pred: Tensor) -> Tensor:
        """The loss, ()."""
        mean = functional.bending_energy(pred, self.normalize)
        if self.reduction == "mean":
            return mean
        batch, channels, *shape = pred.shape
        return mean * (batch * channels * (shape[0] - 2) * (shape[1] - 2) * (shape[2] - 2))


class Warp(torch.nn.Module):
    """An image at x + ddf(x), in voxels."""

    def __init__(self, mode: str = "bilinear", padding_mode: str = "border", jitter: bool = False) -> None:
        super().__init__()
        if jitter:
            raise DaskregError("jitter is on; off was expected.")
        self.mode, self.padding_mode = str(getattr(mode, "value", mode)), str(getattr(padding_mode, "value", padding_mode))
        one_of("mode", self.mode, ("bilinear", "nearest"))
        one_of("padding_mode", self.padding_mode, tuple(functional.BORDERS))

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        """(B, C, H, W, D)."""
        return functional.warp(image, ddf, self.padding_mode, self.mode)  # type: ignore[arg-type]  # the word was checked


class DVF2DDF(torch.nn.Module):
    """A displacement from a velocity by scaling and squaring, ``num_steps`` times."""

    def __init__(self, num_steps: int = 7, mode: str = "bilinear", padding_mode: str = "zeros") -> None:
        super().__init__()
        if num_steps <= 0:
            raise DaskregError(f"num_steps is {num_steps}; at least 1 was expected.")
        one_of("mode", str(getattr(mode, "value", mode)), ("bilinear",))
        self.num_steps, self.padding_mode = num_steps, str(getattr(padding_mode, "value", padding_mode))
        one_of("padding_mode", self.padding_mode, tuple(functional.BORDERS))

    def forward(self, dvf: Tensor) -> Tensor:
        """(B, 3, H, W, D)."""
        return functional.exponential(dvf, self.num_steps, self.padding_mode)  # type: ignore[arg-type]  # the word was checked

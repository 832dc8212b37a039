"""Stands for ``voxelmorph.nn.modules`` and the losses of ``neurite.nn.modules``, with the names of earlier versions too.

    from daskreg.torch.voxelmorph import NCC, SpatialGradient, SpatialTransformer

After VoxelMorph and neurite 0.3.4, for volumes; ``voxelmorph_0_2`` stands for the modules of 0.2. ``NCC`` is positive and
(1, 1), as neurite's: minimise its negative. ``NCCLoss`` is the loss of earlier versions of VoxelMorph, minus the mean, with a
method ``loss(y_true, y_pred)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import functional
from daskreg.torch.checks import one_of

INTERPOLATION = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"}


class NCC(torch.nn.Module):
    """The squared local correlation cross^2 / (var var + eps), sums over windows of zeros beyond the faces.

    reduction: "mean", "sum", or None for (B, C);  reduction_dim: over batch and channels
    """

    def __init__(
        self,
        window_size: int | Sequence[int] = 9,
        eps: float = 1e-5,
        reduction: str | None = "mean",
        reduction_dim: int | tuple[int, ...] = (0, 1),
        keepdims: bool = True,
    ) -> None:
        super().__init__()
        if reduction is not None:
            one_of("reduction", reduction, ("mean", "sum"))
        self.window_size, self.eps, self.reduction, self.reduction_dim = window_size, eps, reduction, reduction_dim
        self.keepdims = keepdims

    def forward(self, tensor1: Tensor, tensor2: Tensor) -> Tensor:
        """(1, 1), or what the reduction makes of (B, C)."""
        score = -functional.lncc(tensor2, tensor1, self.window_size, epsilon=self.eps, reduction="volume")
        if self.reduction is None:
            return score
        return getattr(score, self.reduction)(dim=self.reduction_dim, keepdim=self.keepdims)


class NCCLoss:
    """Minus the mean of ``NCC`` with a window of 9 voxels, ()."""

    def __init__(self, win: Sequence[int] | None = None) -> None:
        self.win: int | Sequence[int] = 9 if win is None else list(win)

    def loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss, ()."""
        return functional.lncc(y_pred, y_true, self.win)


class SpatialGradient(torch.nn.Module):
    """The mean absolute ("l1") or squared ("l2") forward difference, averaged over the axes, ()."""

    def __init__(
        self, penalty: str = "l2", reduction: str | None = "mean", reduction_dim: Any = None, keepdims: bool = False
    ) -> None:
        super().__init__()
        if reduction != "mean" or reduction_dim is not None or keepdims:
            raise DaskregError(f"the reduction is {reduction!r} over {reduction_dim}; 'mean' over all dimensions was expected.")
        one_of("penalty", penalty, ("l1", "l2"))
        self.penalty = penalty

    def forward(self, input_tensor: Tensor) -> Tensor:
        """The penalty, ()."""
        return functional.gradient_penalty(input_tensor, self.penalty)  # type: ignore[arg-type]  # the word was checked


class SpatialTransformer(torch.nn.Module):
    """An image at x + u(x), u in voxels, zeros beyond the faces.

    align_corners: voxels are counted from centre to centre; VoxelMorph's other setting scales displacements, and is refused.
    """

    def __init__(self, interpolation_mode: str = "linear", align_corners: bool = True, device: Any = None) -> None:
        super().__init__()
        if not isinstance(interpolation_mode, str):
            raise DaskregError(
                f"{interpolation_mode!r} is no interpolation_mode; if the shape of the volume was given, as in VoxelMorph 0.2, "
                "use daskreg.torch.voxelmorph_0_2."
            )
        one_of("interpolation_mode", interpolation_mode, tuple(INTERPOLATION))
        if not align_corners:
            raise DaskregError("align_corners is False; True was expected.")
        self.interpolation_mode, self.align_corners = interpolation_mode, align_corners

    def forward(self, moving_image: Tensor, deformation_field: Tensor) -> Tensor:
        """(B, C, *spatial)."""
        return functional.warp(moving_image, deformation_field, "zeros", INTERPOLATION[self.interpolation_mode])


class IntegrateVelocityField(torch.nn.Module):
    """A displacement from a velocity by scaling and squaring, zeros beyond the faces."""

    def __init__(
        self,
        shape: Any = None,
        steps: int = 1,
        interpolation_mode: str = "linear",
        align_corners: bool = True,
        device: Any = None,
    ) -> None:
        super().__init__()
        one_of("interpolation_mode", interpolation_mode, ("linear", "bilinear"))
        if not align_corners:
            raise DaskregError("align_corners is False; True was expected.")
        self.steps, self.scale = steps, 1.0 / 2**steps

    def forward(self, velocity_field: Tensor) -> Tensor:
        """(B, 3, *spatial)."""
        return functional.exponential(velocity_field, self.steps, "zeros")

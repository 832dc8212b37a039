"""Stands for ``losses`` and the spatial transformer of TransMorph's repository, for volumes.

    from daskreg.torch.transmorph import NCC_vxm, MutualInformation, SpatialTransformer

Checkpoints load: the transformer has the buffer ``grid`` that they contain, which costs three volumes of memory as it does there;
``SpatialTransformer(size, keep_grid=False)`` ignores it instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import functional
from daskreg.torch.checks import one_of


class NCC_vxm(torch.nn.Module):
    """Minus the mean squared local correlation of windows of 9 voxels, zeros beyond the faces."""

    def __init__(self, win: Sequence[int] | None = None) -> None:
        super().__init__()
        self.win: int | Sequence[int] = 9 if win is None else list(win)

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss, ()."""
        return functional.lncc(y_pred, y_true, self.win)


class NCC(torch.nn.Module):
    """``NCC_vxm`` with its arguments in the other order."""

    def __init__(self, win: Sequence[int] | None = None) -> None:
        super().__init__()
        self.win: int | Sequence[int] = 9 if win is None else list(win)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss, ()."""
        return functional.lncc(y_pred, y_true, self.win)


class MutualInformation(torch.nn.Module):
    """Minus the mean mutual information of the batch elements.

    num_bin: bins centred from minval to maxval;  sigma_ratio: of a bin. Intensities are clamped to 0 .. maxval.
    """

    def __init__(self, sigma_ratio: float = 1, minval: float = 0.0, maxval: float = 1.0, num_bin: int = 32) -> None:
        super().__init__()
        self.sigma_ratio, self.minval, self.maxval, self.num_bins = sigma_ratio, minval, maxval, num_bin

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss, ()."""
        return functional.mutual_information(
            y_pred, y_true, self.num_bins, sigma_ratio=self.sigma_ratio, low=self.minval, high=self.maxval, clip=0.0,
            numerator=0.0, denominator=1e-6, additive=1e-6,
        )  # fmt: skip


class Grad3d(torch.nn.Module):
    """The mean absolute ("l1") or squared ("l2") forward difference, averaged over the axes, times ``loss_mult``."""

    def __init__(self, penalty: str = "l1", loss_mult: float | None = None) -> None:
        super().__init__()
        one_of("penalty", penalty, ("l1", "l2"))
        self.penalty, self.loss_mult = penalty, loss_mult

    def forward(self, y_pred: Tensor, y_true: Tensor | None = None) -> Tensor:
        """The penalty, (); ``y_true`` is not used."""
        value = functional.gradient_penalty(y_pred, self.penalty)  # type: ignore[arg-type]  # the word was checked
        return value if self.loss_mult is None else value * self.loss_mult


class SpatialTransformer(torch.nn.Module):
    """An image at x + flow(x), in voxels, zeros beyond the faces.

    size: of the volume;  keep_grid: have the buffer ``grid`` (1, 3, *size), which is not used
    """

    def __init__(self, size: Sequence[int], mode: str = "bilinear", keep_grid: bool = True) -> None:
        super().__init__()
        one_of("mode", mode, ("bilinear", "nearest"))
        if len(size) != 3:
            raise DaskregError(f"the size is {tuple(size)}; three axes were expected.")
        self.mode, self.keep_grid = mode, keep_grid
        if keep_grid:
            axes = [torch.arange(0, n, dtype=torch.float32) for n in size]
            self.register_buffer("grid", torch.stack(torch.meshgrid(axes, indexing="ij"))[None])

    def forward(self, src: Tensor, flow: Tensor) -> Tensor:
        """(B, C, *size)."""
        return functional.warp(src, flow, "zeros", self.mode)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = {k: v for k, v in state_dict.items() if self.keep_grid or k != f"{prefix}grid"}
        if not self.keep_grid and isinstance(state_dict, dict):
            state_dict.pop(f"{prefix}grid", None)
        super()._load_from_state_dict(kept, prefix, *rest)

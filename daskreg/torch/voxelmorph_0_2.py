"""Stands for ``voxelmorph.torch.layers`` and ``voxelmorph.torch.losses`` of VoxelMorph 0.2, for volumes.

    from daskreg.torch.voxelmorph_0_2 import NCC, Grad, SpatialTransformer, VecInt

Losses have a method ``loss(y_true, y_pred)``. Checkpoints load: the transformers have the buffer ``grid`` that they contain.
``voxelmorph`` stands for the modules of 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import functional, transmorph
from daskreg.torch.transmorph import SpatialTransformer
from daskreg.torch.voxelmorph import NCCLoss as NCC

__all__ = ["MSE", "NCC", "Grad", "SpatialTransformer", "VecInt"]


class VecInt(torch.nn.Module):
    """A displacement from a velocity by scaling and squaring, zeros beyond the faces.

    inshape: of the volume;  nsteps: squarings;  keep_grid: see ``SpatialTransformer``
    """

    def __init__(self, inshape: Sequence[int], nsteps: int, keep_grid: bool = True) -> None:
        super().__init__()
        if nsteps < 0:
            raise DaskregError(f"nsteps is {nsteps}; 0 or more was expected.")
        self.nsteps, self.scale = nsteps, 1.0 / 2**nsteps
        self.transformer = SpatialTransformer(inshape, keep_grid=keep_grid)

    def forward(self, vec: Tensor) -> Tensor:
        """(B, 3, *inshape)."""
        return functional.exponential(vec, self.nsteps, "zeros")


class MSE:
    """The mean squared difference, ()."""

    def loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss, ()."""
        return functional.mse(y_pred, y_true)


class Grad:
    """The mean absolute ("l1") or squared ("l2") forward difference, averaged over the axes, times ``loss_mult``."""

    def __init__(self, penalty: str = "l1", loss_mult: float | None = None) -> None:
        self.penalty, self.loss_mult = penalty, loss_mult
        self._penalty = transmorph.Grad3d(penalty, loss_mult)

    def loss(self, _: Tensor | None, y_pred: Tensor) -> Tensor:
        """The penalty, ()."""
        return self._penalty(y_pred)

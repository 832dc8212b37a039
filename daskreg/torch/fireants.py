"""Custom losses for FireANTs: modules of (moved, fixed), as its registrations take them.

    GreedyRegistration(..., loss_type="custom", custom_loss=daskreg.torch.fireants.LNCC(kernel_size=7))

Written from FireANTs' public interface; nothing of its code is in here. Both images are (B, C, Z, Y, X).
"""

from __future__ import annotations

import torch
from torch import Tensor

from daskreg.torch import functional
from daskreg.torch.windows import WindowKind, window_weights


class LNCC(torch.nn.Module):
    """Minus the mean squared local correlation of cubic windows.

    kernel_size: voxels, odd;  kernel_type: as in ``window_weights``;  smooth_dr: the least of each variance
    """

    def __init__(self, kernel_size: int = 7, kernel_type: WindowKind = "rectangular", smooth_dr: float = 1e-5) -> None:
        super().__init__()
        window_weights(kernel_size, kernel_type)
        self.kernel_size, self.kernel_type, self.smooth_dr = kernel_size, kernel_type, smooth_dr

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, ()."""
        return functional.lncc(moved, fixed, self.kernel_size, kind=self.kernel_type, floor=self.smooth_dr, epsilon=0.0)

    def get_image_padding(self) -> int:
        """Voxels around a voxel that its window reads."""
        return (self.kernel_size - 1) // 2


class MutualInformation(torch.nn.Module):
    """Minus the mean mutual information of the batch elements, intensities in [0, 1].

    num_bins: bins;  sigma_ratio: of a bin
    """

    def __init__(self, num_bins: int = 32, sigma_ratio: float = 0.5) -> None:
        super().__init__()
        self.num_bins, self.sigma_ratio = num_bins, sigma_ratio

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, ()."""
        return functional.mutual_information(moved, fixed, self.num_bins, sigma_ratio=self.sigma_ratio)

    def get_image_padding(self) -> int:
        """Voxels around a voxel that are read: none."""
        return 0


class MSE(torch.nn.Module):
    """The mean squared difference."""

    def forward(self, moved: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, ()."""
        return functional.mse(moved, fixed)

    def get_image_padding(self) -> int:
        """Voxels around a voxel that are read: none."""
        return 0

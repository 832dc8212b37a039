"""Stands for similarities of ``icon_registration.losses``: ``LNCC``, ``SquaredLNCC``, ``BlurredSSD``, for volumes.

After icon-registration 1.1. Windows are Gaussian with 4 sigma + 1 voxels; LNCC is not squared. Masks are refused.
"""

from __future__ import annotations

import math

from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import functional, operators
from daskreg.torch.checks import computed, same_shape

FLOOR = 1e-5  # added to each variance


def _taps(sigma: int) -> list[float]:
    """Normalised Gaussian weights of 4 sigma + 1 voxels."""
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-2 * sigma, 2 * sigma + 1)]
    return [t / sum(taps) for t in taps]


class LNCC:
    """1 minus the mean local correlation, ()."""

    isInterpolated = False
    squared = False

    def __init__(self, sigma: int) -> None:
        self.sigma = sigma

    def __call__(self, image_A: Tensor, image_B: Tensor, mask_B: Tensor | None = None) -> Tensor:
        """The loss; both images have derivatives."""
        if mask_B is not None:
            raise DaskregError("a mask was given; none was expected.")
        weights = [_taps(self.sigma)] * 3
        return 1 + functional.lncc(image_A, image_B, weights=weights, squared=self.squared, additive=FLOOR, epsilon=0.0)


class SquaredLNCC(LNCC):
    """1 minus the mean squared local correlation, ()."""

    squared = True


class BlurredSSD:
    """The mean squared difference of both images filtered by Gaussians of 4 sigma + 1 voxels, zeros beyond the faces, ()."""

    isInterpolated = False

    def __init__(self, sigma: int) -> None:
        self.sigma = sigma

    def __call__(self, image_A: Tensor, image_B: Tensor) -> Tensor:
        """The loss."""
        same_shape(image_A, image_B)
        (difference,) = computed(image_A - image_B)
        taps = _taps(self.sigma)
        return operators.filtered(difference, taps, taps, taps, False, False).square().mean()

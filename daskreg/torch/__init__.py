"""Differentiable registration kernels for PyTorch: losses, samplers and operations on displacements, on CPU and CUDA tensors.

Importing this package imports PyTorch; importing ``daskreg`` does not. ``pip install 'daskreg[torch]'``. The modules ``monai``,
``voxelmorph``, ``voxelmorph_0_2``, ``transmorph``, ``fused_lncc``, ``icon`` and ``fireants`` stand for those of other packages.
"""

from __future__ import annotations

from daskreg.errors import ConfigError

try:
    import torch as _torch
except ImportError:
    raise ConfigError(
        "daskreg.torch needs PyTorch 2.11 or newer, and it is not installed; pip install 'daskreg[torch]'."
    ) from None
if not hasattr(_torch, "library"):
    raise ConfigError("the PyTorch that is installed cannot be used; 2.11 or newer was expected.")

from daskreg.torch.functional import (
    affine_warp,
    bending_energy,
    compose,
    exponential,
    gaussian,
    gradient_penalty,
    grid_sample,
    jacobian_determinant,
    lncc,
    mse,
    mutual_information,
    warp,
    warped_loss,
)
from daskreg.torch.windows import window_weights

__all__ = [
    "affine_warp",
    "bending_energy",
    "compose",
    "exponential",
    "gaussian",
    "gradient_penalty",
    "grid_sample",
    "jacobian_determinant",
    "lncc",
    "mse",
    "mutual_information",
    "warp",
    "warped_loss",
    "window_weights",
]

"""Normalised gradient fields: edges at the same places, whatever the intensities on both sides of them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from daskreg.parameters import DeviceKind, Number, SimilarityParameters


class NGF(SimilarityParameters):
    """Normalised gradient fields (squared): edges in the same places and along the same lines, whatever the intensities."""

    kind: Literal["ngf"] = "ngf"
    eta: Number = Field(0.01, ge=1e-6, le=1)
    """What a gradient is compared with, as a part of the intensity range a voxel of the level: gradients well below it count
    as noise. Raise it for noisy images (0.05 in the presets); as large as the edges themselves it rewards steep ones.
    """
    smoothed: bool = False
    """Whether each difference is the mean of nine, weighted by 1, 2 and 1 along the other two axes, as Sobel's are. Noise then
    draws a map less to places between voxels (the linear stages of the presets); finer structures count less.
    """
    label: ClassVar[str] = "− NGF"
    separable: ClassVar[bool] = True
    seconds: ClassVar[dict[str, float]] = {"cpu": 0.055, "cuda": 7.6e-5}  # measured beside LNCC; gpu_iterations.json

    @property
    def reach(self) -> int:
        """Neighbours, whose differences read their own neighbours."""
        return 2

    @property
    def scratch(self) -> int:
        """The derivative with respect to each difference, float32."""
        return 12

    @property
    def gradient_scale(self) -> float:
        """Measured as for the other losses, in two heads, with eta from 0.01 to 0.1, before edges are matched: that has the
        product of both twice.
        """
        return 0.16 / (1 + 25 * self.eta)

    def build(self, device: DeviceKind) -> Any:
        """A ``daskreg.similarity.ngf.loss.NormalisedGradients``."""
        from daskreg.similarity.ngf import loss

        kind = loss.NormalisedGradients if device == "cpu" else loss.NormalisedGradientsOnGpu
        return kind(self.eta, self.smoothed)

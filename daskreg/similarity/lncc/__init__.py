"""Local normalised cross-correlation: same structures, any local brightness."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field

from daskreg.parameters import DeviceKind, Number, SimilarityParameters, Whole


class LNCC(SimilarityParameters):
    """Local normalised cross-correlation (squared): same structures, any local brightness."""

    kind: Literal["lncc"] = "lncc"
    radius: Whole = Field(2, ge=1, le=8)
    """Half of the window's edge, in voxels of the level: a window has (2 radius + 1)^3 voxels. Raise it for noise and sparse
    structures, lower it for fine ones.
    """
    gradient: Literal["exact", "center"] = "exact"
    """``center`` keeps the centre window's part alone, as ANTs does: faster, and correlates 0.93 with the exact one."""
    epsilon: Number = Field(1e-12, ge=1e-30, le=1)
    """Added to the denominator, the product of both variances times the window's voxels squared, with intensities scaled to
    [0, 1]: keeps 0/0 away. There is no reason to change it.
    """
    minimum_contrast: Number = Field(0.002, ge=0, le=1, validation_alias=AliasChoices("minimum_contrast", "flat"))
    """Windows whose standard deviation is below this part of the intensity range are left out. Raise it where a noisy
    background is warped.
    """
    noise: Number = Field(0.0, ge=0, le=1)
    """Standard deviation of the noise, as a part of the intensity range: windows count by the part of their variance in the
    fixed image that is above it, s^2 / (s^2 + noise^2). 0: all count alike. 0.03 in the preset ``brain``. Raise it where what
    has no structure is warped, lower it where faint structures stay apart.
    """
    radius_mm: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    """Half of the window's edge in millimetres, at most: at a level whose voxels have an edge of v mm (of a cube as large) the
    radius is this over v, rounded, but at least 1 and at most ``radius``. None, or images that state no unit of length:
    ``radius`` at every level. 2.8 at full resolution in the preset ``brain``.
    """
    label: ClassVar[str] = "− LNCC"
    separable: ClassVar[bool] = True
    seconds: ClassVar[dict[str, float]] = {"cpu": 0.053, "cuda": 7.0e-5}  # benchmarks/results: estimate.json, gpu_iterations.json

    def in_voxels(self, edge_mm: float | None) -> Self:
        """With the radius that windows have at voxels of that edge."""
        if self.radius_mm is None:
            return self
        fitting = self.radius if edge_mm is None else math.floor(self.radius_mm / edge_mm + 0.5)
        return self.model_copy(update={"radius": max(1, min(self.radius, fitting)), "radius_mm": None})

    @property
    def exact(self) -> bool:
        """Whether the gradient is that of the loss, of all windows that a voxel is in."""
        return self.gradient == "exact"

    @property
    def flat(self) -> float:
        """The earlier name of ``minimum_contrast``."""
        return self.minimum_contrast

    @property
    def reach(self) -> int:
        """Windows of the voxels in the window."""
        return 2 * self.radius if self.exact else self.radius

    @property
    def scratch(self) -> int:
        """Three factors of each window, float32."""
        return 12

    @property
    def gradient_scale(self) -> float:
        """The exact gradient adds up as many windows as one has voxels."""
        return 0.1 if self.exact else 0.1 / (2 * self.radius + 1) ** 3

    def build(self, device: DeviceKind) -> Any:
        """A ``daskreg.similarity.lncc.loss.LocalCorrelation``."""
        from daskreg.similarity.lncc import loss

        return loss.LocalCorrelation(self) if device == "cpu" else loss.LocalCorrelationOnGpu(self)

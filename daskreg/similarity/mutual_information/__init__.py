"""Mutual information: any functional relation of the intensities."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from daskreg.parameters import DeviceKind, SimilarityParameters, Whole


class MI(SimilarityParameters):
    """Mutual information after Mattes: any relation of the intensities."""

    kind: Literal["mi"] = "mi"
    bins: Whole = Field(32, ge=8, le=128)
    """Bins of the histogram for each image, two of them padding at each end. Lower it for small images, where bins stay empty."""
    label: ClassVar[str] = "− mutual information"
    seconds: ClassVar[dict[str, float]] = {"cpu": 0.070, "cuda": 5.6e-5}  # benchmarks/results: estimate.json, gpu_iterations.json

    def summed(self, planes: int) -> int:
        """The joint histogram."""
        return self.bins**2

    @property
    def gradient_scale(self) -> float:
        """See ``SimilarityParameters``."""
        return 0.3

    def build(self, device: DeviceKind) -> Any:
        """A ``daskreg.similarity.mutual_information.loss.MutualInformation``."""
        from daskreg.similarity.mutual_information import loss

        return loss.MutualInformation(self.bins) if device == "cpu" else loss.MutualInformationOnGpu(self.bins)

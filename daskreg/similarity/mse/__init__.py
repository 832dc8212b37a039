"""Mean squared error: same contrast."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from daskreg.parameters import DeviceKind, SimilarityParameters


class MSE(SimilarityParameters):
    """Mean squared difference of intensities, for images of the same contrast. Linear stages match their brightness."""

    kind: Literal["mse"] = "mse"
    label: ClassVar[str] = "mean squared difference"
    separable: ClassVar[bool] = True
    seconds: ClassVar[dict[str, float]] = {"cpu": 0.041, "cuda": 4.4e-5}  # benchmarks/results: estimate.json, gpu_iterations.json

    @property
    def gradient_scale(self) -> float:
        """See ``SimilarityParameters``."""
        return 0.01

    def build(self, device: DeviceKind) -> Any:
        """A ``daskreg.similarity.mse.loss.MeanSquaredError``."""
        from daskreg.similarity.mse import loss

        return loss.MeanSquaredError() if device == "cpu" else loss.MeanSquaredErrorOnGpu()

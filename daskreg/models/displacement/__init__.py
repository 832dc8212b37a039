"""A displacement at every voxel (method, section 5): its parameters; ``composition`` is the implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from daskreg.deferred import DeferredModule
from daskreg.parameters import DeviceKind, ModelParameters, Storage

if TYPE_CHECKING:
    from daskreg.kernels.smoothing import cpu as smoothing
    from daskreg.models.base import BlockLayout, TransformModel
else:
    smoothing = DeferredModule("daskreg.kernels.smoothing.cpu")


class Displacement(ModelParameters):
    """``u <- G (s d + u o (Id + s d))``: composition with a small step keeps the map invertible."""

    kind: Literal["displacement"] = "displacement"
    shortens_steps: ClassVar[bool] = True

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Mixed: the direction comes from the optimizer's state."""
        return ("float32", "moments", "mixed")

    def reach(self, smooth_warp: float) -> int:
        """The filter's taps, and one plane: a step is shorter than a voxel."""
        return smoothing.gaussian_radius(smooth_warp) + 1

    def direction_reach(self, smooth_warp: float) -> int:
        """The filter's taps."""
        return smoothing.gaussian_radius(smooth_warp)

    def state_bytes(self) -> int:
        """Three float32."""
        return 12

    def build(self, layout: BlockLayout, device: DeviceKind) -> TransformModel:
        """For a CPU or a GPU."""
        from daskreg.models.displacement.composition import ComposedDisplacement, ComposedDisplacementOnGpu

        return ComposedDisplacement(layout) if device == "cpu" else ComposedDisplacementOnGpu(layout)

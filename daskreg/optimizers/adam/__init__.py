"""Adam (method, section 5): its parameters; ``update`` is the implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from daskreg.parameters import TWO, Decay, DeviceKind, Number, OptimizerParameters, Storage

if TYPE_CHECKING:
    from daskreg.optimizers.base import Optimizer

COHERENT_REACH = 6  # most taps on each side of a filter with ``coherence``, whose fourth component takes shared memory


class Adam(OptimizerParameters):
    """Adam: each component divided by the root of its mean square."""

    kind: Literal["adam"] = "adam"
    betas: Annotated[tuple[Decay, Decay], TWO] = (0.9, 0.99)
    """Decay of the running means of the gradient and of its square, an iteration. With 0.999 for the second a level of
    hundreds of iterations forgets nothing.
    """
    significance: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """A component whose squared mean gradient over its mean square is at most so many times what independent gradients have
    by chance does not move, others move less by that part; 0: all move. Raise it where noise alone is warped.
    """
    epsilon: Annotated[Number, Field(ge=1e-6, le=100)] = 0.1
    """Added to the root of the mean square, in units of the gradient where images disagree clearly: a voxel with a gradient of
    this length moves half as far as one with a clear one. Larger values leave noise at rest, and descend as ``sgd`` does.
    """

    coherence: Annotated[Number, Field(ge=0, le=100)] = 0.0
    """A voxel does not move where the mean gradient within the filter of ``smooth_gradient``, squared, is at most so many times
    what it has by chance where voxels differ independently, as noise does; others move less by that part, along the gradient;
    0: all move. 0.4 and 0.6 in the preset ``brain``, 2 in ``multimodal``. Raise it where noise is warped, lower it where faint
    structures stay apart. ``smooth_gradient`` is above 0 then, and at most 3.
    """

    @model_validator(mode="after")
    def _one_question(self) -> Adam:
        if self.coherence and self.significance:
            raise ValueError("coherence and significance do not go together; use one of them")
        return self

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Moments and mixed: both moments in one word of 32 bits."""
        return ("float32", "moments", "mixed")

    @property
    def fused_reach(self) -> int:
        """As far as shared memory holds a filter's planes, of three components or four."""
        from daskreg.kernels.smoothing.cuda import MAX_RADIUS

        return COHERENT_REACH if self.coherence else MAX_RADIUS

    @property
    def widest_filter(self) -> float:
        """With ``coherence`` as far as shared memory holds it, on a CPU too, so that a recipe runs on either."""
        return COHERENT_REACH / 2 if self.coherence else super().widest_filter

    @property
    def compares_filtered(self) -> bool:
        """For ``coherence``: of one voxel the mean is the gradient, which says nothing of chance."""
        return self.coherence > 0

    def state_bytes(self, storage: Storage) -> int:
        """Both moments."""
        return 24 if storage == "float32" else 12

    def swept_bytes(self, storage: Storage) -> int:
        """The direction follows from both moments."""
        return self.state_bytes(storage)

    def build(self, storage: Storage, device: DeviceKind) -> Optimizer:
        """For a CPU or a GPU, in the storages that each has: moments on a CPU, mixed on a GPU."""
        if self.coherence:
            return self._coherent(storage, device)
        from daskreg.optimizers.adam.update import AdamOnCpu, AdamOnGpu, MixedAdam, PackedAdamOnCpu

        if device == "cpu":
            return (PackedAdamOnCpu if storage == "moments" else AdamOnCpu)(self.betas, self.significance, self.epsilon)
        return (MixedAdam if storage == "mixed" else AdamOnGpu)(self.betas, self.significance, self.epsilon)

    def _coherent(self, storage: Storage, device: DeviceKind) -> Optimizer:
        from daskreg.optimizers.adam import coherent as c

        on_cpu = c.PackedCoherentAdamOnCpu if storage == "moments" else c.CoherentAdamOnCpu
        on_gpu = c.CoherentMixedAdam if storage == "mixed" else c.CoherentAdamOnGpu
        return (on_cpu if device == "cpu" else on_gpu)(self.betas, self.coherence, self.epsilon)

"""Bases of what a configuration holds: frozen values, checked when they are made.

The parameters of a similarity, an optimizer or a transform model also state what a plan needs to know of it before anything is
computed, and make its implementation.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from daskreg.errors import require_known

if TYPE_CHECKING:
    from collections.abc import Mapping

Positive = Annotated[float, Field(gt=0)]
DeviceKind = Literal["cpu", "cuda"]
Storage = Literal["float32", "mixed"]


class Model(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, which are not validated again. Raises ConfigError for a name that is no field."""
        for name in update or {}:
            require_known(f"field of {type(self).__name__}", name, type(self).model_fields)
        return super().model_copy(update=update, deep=deep)


class SimilarityParameters(Model):
    """Parameters of a similarity, what a plan has to know of it, and how it is made."""

    kind: str  # a Literal in each class: the word that selects it in a configuration
    label: ClassVar[str] = "loss"  # of the loss in a chart
    seconds: ClassVar[Mapping[str, float]] = {
        "cpu": 0.07,
        "cuda": 1e-4,
    }  # of a deformable iteration, a megavoxel and a core (a GPU)

    @property
    def reach(self) -> int:
        """Voxels around x, along each axis, whose moved values the loss and its gradient at x depend on through ``partial``."""
        return 0

    @property
    def scratch(self) -> int:
        """Bytes a voxel that ``partial`` leaves for ``finish`` in a linear stage; a deformable stage has buffers for them."""
        return 0

    def summed(self, planes: int) -> int:
        """Numbers of 8 bytes that a rank with so many planes gives to the sum over all ranks."""
        return 2 * planes

    @property
    @abstractmethod
    def gradient_scale(self) -> float:
        """Usual length of N dC/du where images scaled to [0, 1] disagree: what an optimiser takes for a clear gradient."""

    @abstractmethod
    def build(self, device: DeviceKind) -> Any:
        """The implementation, a ``daskreg.similarity.base.Similarity``."""


class OptimizerParameters(Model):
    """Parameters of an optimizer, what a plan has to know of it, and how it is made."""

    kind: str

    @property
    def storages(self) -> tuple[Storage, ...]:
        """In which its state can be kept on a GPU."""
        return ("float32",)

    @property
    def fused_reach(self) -> int:
        """Taps on one side of the widest filter of the gradient that ``step`` applies without a buffer, on a GPU."""
        return 0

    @abstractmethod
    def state_bytes(self, storage: Storage) -> int:
        """Bytes a voxel of its state."""

    @abstractmethod
    def build(self, storage: Storage, device: DeviceKind) -> Any:
        """The implementation, a ``daskreg.optimizers.base.Optimizer``."""


class ModelParameters(Model):
    """Parameters of a transform model, what a plan has to know of it, and how it is made."""

    kind: str

    @property
    def storages(self) -> tuple[Storage, ...]:
        """In which an update can read the direction on a GPU."""
        return ("float32",)

    @abstractmethod
    def reach(self, smooth_warp: float) -> int:
        """Planes around its own whose displacement an update of a rank's planes reads."""

    @abstractmethod
    def direction_reach(self, smooth_warp: float) -> int:
        """Planes around its own of which an update reads the direction."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes a voxel of the fields it keeps from one iteration to the next."""

    @abstractmethod
    def build(self, *arguments: Any) -> Any:
        """The implementation, a ``daskreg.models.base.TransformModel``."""

"""Gradient descent with momentum: its parameters; ``update`` is the implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from daskreg.parameters import Decay, DeviceKind, OptimizerParameters, Storage

if TYPE_CHECKING:
    from daskreg.optimizers.base import Optimizer


class SGD(OptimizerParameters):
    """Gradient descent with momentum: voxels move in proportion to their gradient, with no scale of their own."""

    kind: Literal["sgd"] = "sgd"
    momentum: Decay = 0.9
    """Decay of the running mean of the gradient, an iteration; 0: the gradient alone. Lower it where a loss swings."""

    def state_bytes(self, storage: Storage) -> int:
        """The running mean."""
        return 12

    def swept_bytes(self, storage: Storage) -> int:
        """The direction follows from the mean."""
        return self.state_bytes(storage)

    def build(self, storage: Storage, device: DeviceKind) -> Optimizer:
        """The same for every device."""
        from daskreg.optimizers.sgd.update import Momentum

        return Momentum(self.momentum)

"""What an optimizer implements: its state, and one step from a gradient to a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from daskreg.kernels.compiler.launch import Shape

State = dict[str, NDArray[Any]]


class Filter(Protocol):
    """A separable Gaussian on a block's vector fields (``engine.smoothing.Smoother``)."""

    reach: int
    weights: tuple[np.float32, ...]
    tables: list[Any]  # by axis: (planes, taps) float32 weights of every voxel
    norms: list[Any]  # by axis: (planes,) float32, 1 over the sum of the weights inside of the grid
    ones: list[Any]  # by axis: the same for a filter of one tap
    shares: list[Any]  # by axis: (planes,) float32, the sum of the squares of the weights, which sum to 1

    def along_zy(self, box: Shape, field: Any, scratch: Any) -> None:
        """Smooth in place along z and y."""

    def into(self, box: Shape, field: Any, scratch: Any, smoothed: Any) -> None:
        """Smooth along all axes; ``field`` and ``scratch`` are overwritten."""


class Step(Protocol):
    """One step on one rank, as ``Optimizer.step`` sees it: arrays of the block, and how kernels are launched."""

    box: Shape  # the planes whose direction is wanted
    idle: bool  # whether this rank has no planes
    first: int  # plane of the level that the arrays begin with
    planes: int  # of the arrays
    filter: Filter  # of the gradient
    gradient: Any  # (3, Z, Y, X), float32 or, in mixed storage, the bits of bfloat16 as uint16
    direction: Any  # (3, Z, Y, X) float32; without planes in mixed storage
    state: State
    coefficients: Any  # (T, n) float32: ``Optimizer.coefficients`` of every step
    clock: Any  # (1,) int32: which row counts
    longest: Any  # (1,) float32, 0 before: raised to the largest |d|^2

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """Launch kernels; may record them for a CUDA graph, so that they must not wait for the device."""

    def smoothed(self) -> Any:
        """The gradient smoothed along all axes, in a buffer (3, Z, Y, X)."""


class Optimizer(ABC):
    """Turns a smoothed gradient into a direction, voxel by voxel, with a state of named fields.

    A direction's length is free: a step is scaled so that its longest vector is at most ``maximum_step`` voxels
    (method, section 5), and shorter where that vector is shorter than 1.
    """

    asynchronous: bool = False  # whether ``step`` never waits for a GPU
    at_rest: float = 1 / 20  # length of the longest first direction where no voxel has more than 1/20 of a clear gradient
    restores_direction: bool = False  # whether a direction follows from the state; else it is kept beside it, out of core
    fields: tuple[str, ...] = ()  # of a checkpoint, (3, Z, Y, X) float32 each

    @abstractmethod
    def init(self, zeros: Callable[..., Any]) -> State:
        """The state before the first step; ``zeros(dtype)`` makes a field (3, Z, Y, X)."""

    @abstractmethod
    def coefficients(self, t: int, gradient_scale: float) -> NDArray[np.float32]:
        """Scalars of step t = 1, 2, ..: (n,);  gradient_scale: length of a clear gradient, see ``SimilarityParameters``."""

    @abstractmethod
    def step(self, s: Step) -> None:
        """Smooth the gradient, update the state, write the direction and its largest squared length."""

    def restore_direction(self, s: Step) -> None:
        """Write the direction of the last step again, from the state after it; ``s.clock`` is that step's. See
        ``restores_direction``.
        """
        raise NotImplementedError

    def saved(self, state: State, own: slice) -> Mapping[str, Any]:
        """The own planes of the state for a checkpoint, by ``fields``."""
        return {name: state[name][:, own] for name in self.fields}

    def restore(self, state: State, arrays: Mapping[str, Any], put: Callable[[Any], Any]) -> None:
        """Set the state from all planes of a checkpoint's fields; ``put`` moves an array to the device."""
        for name in self.fields:
            state[name][...] = put(arrays[name])

    def stored_direction(self, s: Step) -> tuple[tuple[bool, ...], Any]:
        """Constants and argument by which ``kernels.composition.cuda.compose_smooth`` reads the direction on a GPU."""
        return (), s.direction.reshape(-1)

"""What a transform model implements: how a direction changes the displacement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from daskreg.optimizers.base import Filter

if TYPE_CHECKING:
    from daskreg.kernels.compiler.launch import Shape


@dataclass(frozen=True)
class BlockLayout:
    """The planes of a level that a rank's arrays hold.

    own, around: boxes for kernels, the own planes, and those with ``direction_reach`` more;  first: plane of the level that the
    arrays begin with;  planes: of the level;  held: of the arrays;  filter: of the displacement;  maximum_step: voxels;
    shortens: whether vectors of a direction may be longer than the longest that scales it, and are shortened to that.
    """

    own: Shape
    around: Shape
    first: int
    planes: int
    held: int
    filter: Filter
    maximum_step: float
    shortens: bool = False


class Fields(Protocol):
    """What an update reads and writes, (3, Z, Y, X) float32 each; u and g may be exchanged."""

    u: Any  # the displacement, voxels
    g: Any  # a buffer
    d: Any  # the direction; without planes in mixed storage

    @property
    def filter_scratch(self) -> Any:
        """What a filter of the new displacement may overwrite."""

    @property
    def filtered(self) -> Any:
        """Where a filter writes the new displacement: u, or what takes its place."""


class Launcher(Protocol):
    """How kernels are launched (``engine.backend.Backend``)."""

    longest: Any  # (1,) float32: the |d|^2 that scales the step, the largest over all ranks

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """Launch kernels."""

    def launch(self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False) -> Any:
        """Run a kernel on the own planes, first on those that neighbours wait for; an event behind these."""


class TransformModel(ABC):
    """What the displacement is made of and how a step changes it; ``layout`` says which planes are held."""

    def __init__(self, layout: BlockLayout) -> None:
        self.layout = layout

    @abstractmethod
    def update(self, fields: Fields, direction: tuple[tuple[bool, ...], Any], on: Launcher) -> Any:
        """Replace ``fields.u`` by the displacement after a step along the direction, on the own planes.

        direction: ``Optimizer.stored_direction``. Returns an event behind the planes that neighbours wait for, or None.
        """

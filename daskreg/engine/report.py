"""What a rank tells: one small value a level, and the outcome of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from daskreg.engine.halo import Block
    from daskreg.engine.planes import Planes


@dataclass
class LevelReport:
    """One level: losses per iteration, seconds, and how it ended."""

    stage: str
    scale: int
    shape: tuple[int, int, int]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "iterations"  # or "plateau", "skipped" and others
    detail: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """One iteration of one level, for whoever watches."""

    stage: str
    scale: int
    iteration: int
    iterations: int
    loss: float


@dataclass(frozen=True)
class Place:
    """Where a run goes on from a checkpoint: so many iterations of a level are done."""

    stage: str
    scale: int
    iteration: int


class Observer:
    """Whoever follows a run on the client, called for what happens to it. This one does nothing."""

    def __call__(self, progress: Progress) -> None:
        """An iteration is done; at most ten a second are told."""

    def level_ended(self, level: LevelReport) -> None:
        """A level, or a stage without levels, is done."""

    def resumed(self, place: Place) -> None:
        """The run goes on from a checkpoint."""

    def phase(self, name: str) -> None:
        """The ranks begin to read, optimise, measure, judge or write, or a stage without levels, which is then the name."""

    def compiling(self, kernels: int, most: int | None = None) -> None:
        """A kernel is compiled that no run on this machine has needed before: the so manieth of ``most``, None: not known."""

    def memory(self, rank: int, resident: int) -> None:
        """A rank's process has so many bytes in RAM."""

    def dashboard(self, address: str) -> None:
        """Where Dask shows the cluster."""

    def tick(self) -> None:
        """Called several times a second by the thread that waits for the run; all else is told from another thread."""


class Calls(Observer):
    """Calls a function for every iteration, and for nothing else."""

    def __init__(self, function: Callable[[Progress], None]) -> None:
        self.function = function

    def __call__(self, progress: Progress) -> None:
        """Pass it on."""
        self.function(progress)


def observer_of(progress: Callable[[Progress], None] | None) -> Observer:
    """What follows a run: an observer, a function of iterations, or nobody."""
    if progress is None:
        return Observer()
    return progress if isinstance(progress, Observer) else Calls(progress)


Trace = Callable[[str, float, float], None]  # what, from when, to when (seconds of time.perf_counter)
NEXT, SAVE, STOP = 0.5, 1.0, 2.0  # what a watch may ask for; NEXT: end the level


class Watch:
    """Receives the progress of every iteration; may ask all ranks to save their state, or to save it and stop. This one does
    neither.
    """

    def __call__(self, progress: Progress) -> None:
        """An iteration is done. Raises what stops the rank at once."""

    def asked(self, *, level_end: bool = False) -> float:
        """0, NEXT, SAVE or STOP: the ranks act on the largest answer, at the same iteration or the same level's end."""
        return 0.0

    def stopping(self) -> bool:
        """Whether the run is to stop, for work that takes long between two questions of ``asked``; any thread may call this."""
        return False

    def level_ended(self, level: LevelReport) -> None:
        """A level is done."""

    def resumed(self, place: Place) -> None:
        """The rank goes on from a checkpoint."""

    def phase(self, name: str) -> None:
        """The rank begins something else."""

    def masked(self, voxels: Sequence[int | None]) -> None:
        """The masks of fixed and moving leave so many voxels; None without a mask."""

    def saved(self, seconds: float) -> None:
        """The state was saved, which took so many seconds."""

    def slow_disk(self, waited: float, seconds: float, rate: float) -> None:
        """A sweep waited for fields on disk so many of its seconds; ``rate``: bytes a second read and written."""


@dataclass
class Outcome:
    """What a rank has in the end: the affine map in world units and the displacement of its block in fixed voxels.

    displacement: the own planes and one more on both sides, wherever they are.
    """

    affine: NDArray[np.float64]
    displacement: Planes | None
    levels: list[LevelReport]
    block: Block

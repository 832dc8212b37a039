"""What a rank tells: one small value a level, and the outcome of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class LevelReport:
    """One level: losses per iteration, seconds, and how it ended."""

    stage: str
    scale: int
    shape: tuple[int, int, int]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "iterations"  # or "plateau"
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


Watch = Callable[[Progress], None]


@dataclass
class Outcome:
    """What a rank has in the end: the affine map in world units and the displacement of its block in fixed voxels."""

    affine: NDArray[np.float64]
    displacement: NDArray[np.float32] | None
    levels: list[LevelReport]

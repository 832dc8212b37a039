"""Groups of iterations that share the scale of a step, so that one sweep over fields out of memory can do all of them.

Iterations k = 0, 1, .. of a level are in the groups 0 | 1 .. n - 1 | n .. 2 n - 1 | ..., n = ``iterations_per_sweep``; the last
one ends with the level. In a group the longest direction of the last iteration before it scales every step, and longer vectors
are shortened to ``maximum_step``. The first iteration has its own. With n = 1 every iteration has, and nothing is shortened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from daskreg.engine.backend import Backend
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.device import host


def is_end(k: int, together: int, iterations: int) -> bool:
    """Whether a group ends with the k-th iteration, k = 1, 2, ..: there a level is judged."""
    return k == 1 or k % together == 0 or k == iterations


def until_end(k: int, together: int, iterations: int) -> int:
    """Iterations from k = 0, 1, .. to the end of its group."""
    return 1 if k == 0 else min((k // together + 1) * together, iterations) - k


class ScaledByGroup:
    """What a model sees of a backend (``models.base.Launcher``): the scale is that of the group.

    longest: (1,) float32, |d|^2 that scales the step of the iteration at hand
    """

    def __init__(self, backend: Backend, together: int, begun: float | None) -> None:
        """begun: what ``next_longest`` gave when the level was left after ``backend.done`` iterations."""
        self.backend, self.together = backend, together
        self.held = backend.block.device.put(np.full(2, begun or 0, np.float32))
        self.longest = self.held[:1]

    def hold(self) -> None:
        """Once all ranks have agreed on the longest direction of an iteration, and before its step."""
        b = self.backend
        if b.block.device.kind == "cuda":
            from daskreg.kernels.iteration_end import hold_longest

            arguments = np.int32(self.together), b.clock, b.longest, self.held
            b.run("hold", partial(hold_longest, (), (1,), (1,), *arguments))
            return
        k, held = int(b.clock[0]), self.held
        if k == 0:
            held[:] = b.longest
        elif k % self.together == 0:
            held[0] = held[1]
        if (k + 1) % self.together == 0:
            held[1] = b.longest[0]

    def next_longest(self, k: int) -> float:
        """What scales the step of iteration k = 1, 2, .., the next one, for a checkpoint."""
        return float(host(self.held)[int(k % self.together == 0)])

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """See ``Launcher``."""
        self.backend.run(name, launches)

    def launch(self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False) -> Any:
        """See ``Launcher``."""
        return self.backend.launch(name, kernel, reach, whole)

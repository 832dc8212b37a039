"""Adam with ``coherence``: the gradients that a filter averages say how much of their mean is chance (method, section 5.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.adam.coherent import (
    coherent_adam,
    coherent_direction,
    mean_along_y,
    mean_along_z,
    packed_coherent_adam,
    packed_coherent_direction,
    squared_length,
    update_chance,
    update_packed_chance,
)
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.compiler.launch import box as box_of
from daskreg.optimizers.adam.update import AdamOnCpu, AdamOnGpu, MixedAdam, PackedMoments
from daskreg.optimizers.base import Step


class CoherentAdam(AdamOnCpu):
    """State m and v, float32; of v the first component."""

    def __init__(self, betas: tuple[float, float], coherence: float, epsilon: float) -> None:
        super().__init__(betas, epsilon=epsilon)
        self.coherence, self.constants = coherence, (self.mixed, False, True)

    def coefficients(self, t: int, gradient_scale: float) -> NDArray[np.float32]:
        """Those of Adam, with ``coherence`` for the chance level."""
        row = super().coefficients(t, gradient_scale)
        row[5] = self.coherence
        return row

    def restore_direction(self, s: Step) -> None:
        """From both moments."""
        coherent_direction(s.box, s.coefficients, s.clock, s.state["m"], s.state["v"], s.direction)


class CoherentAdamOnCpu(CoherentAdam):
    """V first, from the gradient as it is."""

    def step(self, s: Step) -> None:
        """Both filters, the last axis of each in the pass of what it updates."""
        f, g, row = s.filter, s.gradient, s.coefficients[int(s.clock[0])]
        average_squares(s)
        update_chance(s.box, f.reach, f.tables[2], f.weights, *f.shares, row, s.direction, s.state["v"])
        f.along_zy(s.box, g, s.direction)
        rows = coherent_adam(s.box, f.reach, f.tables[2], f.weights, row, g, s.state["m"], s.state["v"], s.direction)
        s.longest[0] = rows.max(initial=0.0)


class CoherentAdamOnGpu(CoherentAdam, AdamOnGpu):
    """Filters and update in one pass."""


class PackedCoherentAdamOnCpu(PackedMoments, CoherentAdam):
    """Packed moments on a CPU."""

    def step(self, s: Step) -> None:
        """As ``CoherentAdamOnCpu.step``."""
        f, g, t, words = s.filter, s.gradient, int(s.clock[0]), s.state["moments"]
        row, filter_ = s.coefficients[t], (f.reach, f.tables[2], f.weights)
        average_squares(s)
        update_packed_chance(s.box, *filter_, *f.shares, row, t, s.first, s.direction, words)
        f.along_zy(s.box, g, s.direction)
        rows = packed_coherent_adam(s.box, *filter_, row, g, words, s.direction)
        s.longest[0] = rows.max(initial=0.0)

    def restore_direction(self, s: Step) -> None:
        """From both moments."""
        packed_coherent_direction(s.box, s.coefficients[int(s.clock[0])], s.state["moments"], s.direction)


class CoherentMixedAdam(MixedAdam, CoherentAdam):
    """Packed moments on a GPU, in mixed storage."""


def average_squares(s: Step) -> None:
    """The squared length of the gradient, smoothed along z and y, in the first component of the direction."""
    f = s.filter
    squared_length(_around(s), s.gradient, s.direction)
    mean_along_z(s.box, f.tables[0], f.weights, s.direction)
    mean_along_y(s.box, f.tables[1], f.weights, s.direction)


def _around(s: Step) -> Shape:
    """The planes that the filter reads."""
    first, planes, ny, nx = box_of(s.box)
    return range(max(first - s.filter.reach, 0), min(first + planes + s.filter.reach, s.planes)), ny, nx

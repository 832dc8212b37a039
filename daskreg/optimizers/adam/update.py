"""The update of a displacement field by Adam (method, section 5; Kingma & Ba 2015, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.adam.cpu import adam, adam_direction
from daskreg.kernels.adam.cuda import launch_grid, smooth_adam
from daskreg.kernels.adam.moments import pack_moments, unpack_moments
from daskreg.kernels.adam.packed import packed_adam, packed_adam_direction
from daskreg.kernels.compiler.launch import extent
from daskreg.kernels.device import host
from daskreg.kernels.smoothing.cuda import MAX_RADIUS
from daskreg.optimizers.base import Optimizer, State, Step

LEAST_CLEAR = 0.05  # of a clear gradient: where no voxel has more, the images match already


def chance_level(decay: float, t: int) -> float:
    """The expected m^2/v after t gradients that are independent, with mean 0: the sum of squares of their weights in m.

    0 for t = 1: one gradient says nothing about its noise.
    """
    return 0.0 if t == 1 else (1 - decay) / (1 + decay) * (1 + decay**t) / (1 - decay**t)


class AdamOnCpu(Optimizer):
    """State m and v, float32."""

    restores_direction = True
    fields = ("m", "v")
    mixed = False  # storage

    def __init__(self, betas: tuple[float, float], significance: float = 0.0, epsilon: float = 0.1) -> None:
        self.betas, self.significance, self.epsilon = betas, significance, epsilon
        self.at_rest = 1 / (1 + epsilon / LEAST_CLEAR)
        self.constants: tuple[bool, ...] = (self.mixed, True) if significance else (self.mixed,) if self.mixed else ()

    def init(self, zeros: Callable[..., Any]) -> State:
        """At rest."""
        return {"m": zeros(), "v": zeros()}

    def coefficients(self, t: int, gradient_scale: float) -> NDArray[np.float32]:
        """Both decays, both bias corrections, epsilon, the chance level of m^2/v."""
        b1, b2 = self.betas
        chance = self.significance * chance_level(b1, t)
        return np.array([b1, b2, 1 / (1 - b1**t), 1 / (1 - b2**t), self.epsilon * gradient_scale, chance], np.float32)

    def step(self, s: Step) -> None:
        """The last axis of the filter in the same pass."""
        f, g, row = s.filter, s.gradient, s.coefficients[int(s.clock[0])]
        f.along_zy(s.box, g, s.direction)
        rows = adam(s.box, f.reach, f.tables[2], f.weights, row, g, s.state["m"], s.state["v"], s.direction)
        s.longest[0] = rows.max(initial=0.0)

    def restore_direction(self, s: Step) -> None:
        """From both moments."""
        adam_direction(s.box, s.coefficients, s.clock, s.state["m"], s.state["v"], s.direction)


class AdamOnGpu(AdamOnCpu):
    """Filter and update in one pass, as far as the filter fits into shared memory."""

    asynchronous = True

    def step(self, s: Step) -> None:
        """See ``kernels.adam.cuda.smooth_adam``."""
        if not s.idle:
            s.run("direction", partial(self._step, s))

    def _step(self, s: Step) -> None:
        f, n, fused = s.filter, extent(s.box), s.filter.reach <= MAX_RADIUS
        gradient = (s.gradient if fused else s.smoothed()).reshape(-1)
        reach, weights, norms = (f.reach, f.weights, f.norms) if fused else (0, (np.float32(1),), s.filter.ones)
        length, blocks, threads = launch_grid(n, reach, *self.constants)
        arguments = (
            length,
            n,
            np.uint32(s.planes),
            weights,
            *norms,
            *f.shares,
            s.coefficients,
            s.clock,
            gradient,
            *self._arrays(s),
            s.longest,
        )
        smooth_adam((reach, *self.constants), blocks, threads, *arguments)

    def _arrays(self, s: Step) -> tuple[Any, ...]:
        """M, v and d as the kernel takes them."""
        return s.state["m"].reshape(-1), s.state["v"].reshape(-1), s.direction.reshape(-1)


class PackedMoments(AdamOnCpu):
    """State ``moments``: both in words of 32 bits, stochastically rounded; the direction follows from them."""

    def init(self, zeros: Callable[..., Any]) -> State:
        """At rest."""
        return {"moments": zeros(np.uint32)}

    def saved(self, state: State, own: slice) -> Mapping[str, Any]:
        """As float32, in the machine's memory, so that a checkpoint takes none of the GPU's."""
        return dict(zip(self.fields, unpack_moments(host(state["moments"][:, own])), strict=True))

    def restore(self, state: State, arrays: Mapping[str, Any], put: Callable[[Any], Any]) -> None:
        """What ``saved`` gave comes back bit for bit."""
        state["moments"][...] = put(pack_moments(arrays["m"], arrays["v"]))


class PackedAdamOnCpu(PackedMoments):
    """Packed moments on a CPU, where gradient and direction are float32."""

    def step(self, s: Step) -> None:
        """As ``AdamOnCpu.step``."""
        f, g, t = s.filter, s.gradient, int(s.clock[0])
        f.along_zy(s.box, g, s.direction)
        filter_ = f.reach, f.tables[2], f.weights
        rows = packed_adam(s.box, *filter_, s.coefficients[t], t, s.first, g, s.state["moments"], s.direction)
        s.longest[0] = rows.max(initial=0.0)

    def restore_direction(self, s: Step) -> None:
        """From both moments."""
        packed_adam_direction(s.box, s.coefficients[int(s.clock[0])], s.state["moments"], s.direction)


class MixedAdam(PackedMoments, AdamOnGpu):
    """Packed moments on a GPU, in mixed storage."""

    mixed = True

    def restore_direction(self, s: Step) -> None:
        """It follows from the moments where it is read."""

    def stored_direction(self, s: Step) -> tuple[tuple[bool, ...], Any]:
        """The moments, and what makes a direction of them."""
        return self.constants, (s.state["moments"].reshape(-1), s.coefficients, s.clock)

    def _arrays(self, s: Step) -> tuple[Any, ...]:
        """Moments, nothing for v, and the plane that rounding depends on."""
        return s.state["moments"].reshape(-1), s.direction.reshape(-1)[:0], np.int32(s.first)

"""A displacement at every voxel, updated by composition and smoothed (method, section 5, steps 5 and 6)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import numpy as np

from daskreg.kernels.compiler.launch import Shape, extent
from daskreg.kernels.compiler.launch import box as box_of
from daskreg.kernels.composition.cpu import compose
from daskreg.kernels.composition.cuda import compose_smooth, launch_grid
from daskreg.kernels.smoothing.cpu import gaussian_radius
from daskreg.models.base import BlockLayout, Fields, Launcher, TransformModel
from daskreg.parameters import DeviceKind, ModelParameters, Storage

FUSED_REACH = 2  # taps on one side of the filter that the fused kernel takes; wider filters are applied axis by axis

Taps = tuple[int, tuple[np.float32, ...], list[Any]]  # reach, weights and norms of a filter


class Displacement(ModelParameters):
    """``u <- G (s d + u o (Id + s d))``: composition with a small step keeps the map invertible."""

    kind: Literal["displacement"] = "displacement"

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Mixed: the direction comes from the optimizer's state."""
        return ("float32", "moments", "mixed")

    def reach(self, smooth_warp: float) -> int:
        """The filter's taps, and one plane: a step is shorter than a voxel."""
        return gaussian_radius(smooth_warp) + 1

    def direction_reach(self, smooth_warp: float) -> int:
        """The filter's taps."""
        return gaussian_radius(smooth_warp)

    def state_bytes(self) -> int:
        """Three float32."""
        return 12

    def build(self, layout: BlockLayout, device: DeviceKind) -> TransformModel:
        """For a CPU or a GPU."""
        return ComposedDisplacement(layout) if device == "cpu" else ComposedDisplacementOnGpu(layout)


class ComposedDisplacement(TransformModel):
    """Composition, then the filter axis by axis."""

    def update(self, fields: Fields, direction: tuple[tuple[bool, ...], Any], on: Launcher) -> Any:
        """See ``TransformModel.update``."""
        p, f = self.layout, fields
        scale = np.array([p.maximum_step / max(1.0, math.sqrt(float(on.longest[0])))], np.float32)
        compose(p.around, p.first, p.planes, scale, f.d, f.u, f.g)
        if p.filter.reach:
            p.filter.into(p.own, f.g, f.filter_scratch, f.filtered)
        else:
            f.u, f.g = f.g, f.u


class ComposedDisplacementOnGpu(TransformModel):
    """Both in one pass where the filter is narrow; the step's length is read on the device."""

    def update(self, fields: Fields, direction: tuple[tuple[bool, ...], Any], on: Launcher) -> Any:
        """See ``TransformModel.update``."""
        p, f, w, (constants, d) = self.layout, fields, self.layout.filter, direction
        fields_ = d, f.u.reshape(-1), f.g.reshape(-1)
        compose = partial(self._compose, fields=fields_, longest=on.longest, constants=constants)
        if w.reach <= FUSED_REACH:
            event = on.launch("compose", partial(compose, filter_=(w.reach, w.weights, w.norms)), w.reach + 1)
            f.u, f.g = f.g, f.u
            return event
        if box_of(p.own)[1]:
            on.run("compose", partial(compose, p.around, filter_=(0, (np.float32(1),), w.ones)))
        on.run("smooth", lambda: w.into(p.own, f.g, f.filter_scratch, f.filtered))
        return None

    def _compose(
        self, box: Shape, *, fields: tuple[Any, Any, Any], longest: Any, constants: tuple[bool, ...], filter_: Taps
    ) -> None:
        n, p, (reach, weights, norms) = extent(box), self.layout, filter_
        length, blocks, threads = launch_grid(n, reach)
        where = np.int32(p.first), np.int32(p.planes), np.float32(p.maximum_step), longest
        compose_smooth((reach, *constants), blocks, threads, length, n, np.uint32(p.held), weights, *norms, *where, *fields)

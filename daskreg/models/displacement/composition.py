"""A displacement at every voxel, updated by composition and smoothed (method, section 5, steps 5 and 6)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from daskreg.kernels.compiler.launch import Shape, extent
from daskreg.kernels.composition.cpu import compose, compose_shortened
from daskreg.kernels.composition.cuda import compose_smooth, launch_grid
from daskreg.models.base import Fields, Launcher, TransformModel

FUSED_REACH = 2  # taps on one side of the filter that the fused kernel takes; wider filters are applied axis by axis

Taps = tuple[int, tuple[np.float32, ...], list[Any]]  # reach, weights and norms of a filter


class ComposedDisplacement(TransformModel):
    """Composition, then the filter axis by axis."""

    def update(self, fields: Fields, direction: tuple[tuple[bool, ...], Any], on: Launcher) -> Any:
        """See ``TransformModel.update``."""
        p, f = self.layout, fields
        scale = p.maximum_step / max(1.0, math.sqrt(float(on.longest[0])))
        if p.shortens:
            compose_shortened(p.around, p.first, p.planes, np.array([scale, p.maximum_step], np.float32), f.d, f.u, f.g)
        else:
            compose(p.around, p.first, p.planes, np.array([scale], np.float32), f.d, f.u, f.g)
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
        on.run("compose", partial(compose, p.around, filter_=(0, (np.float32(1),), w.ones)))
        on.run("smooth", lambda: w.into(p.own, f.g, f.filter_scratch, f.filtered))
        return None

    def _compose(
        self, box: Shape, *, fields: tuple[Any, Any, Any], longest: Any, constants: tuple[bool, ...], filter_: Taps
    ) -> None:
        n, p, (reach, weights, norms) = extent(box), self.layout, filter_
        length, blocks, threads = launch_grid(n, reach)
        where = np.int32(p.first), np.int32(p.planes), np.float32(p.maximum_step), longest
        constants = (*constants, *[False] * (3 - len(constants)), True) if p.shortens else constants
        compose_smooth((reach, *constants), blocks, threads, length, n, np.uint32(p.held), weights, *norms, *where, *fields)

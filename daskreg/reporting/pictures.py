"""Pictures of planes: intensity windows, overlays, colour maps and deformed grids."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray

from daskreg.reporting.sampling import Plane, Warp

Pixels = NDArray[np.uint8]
SHOWN_FLOOR = 0.03  # logarithmic intensities: below this part of the range the curve is straight; lower lifts the noise
TILES = 8  # of the checkerboard, along the longer edge
LINES = 22  # of the deformed grid, along the longer edge
FOLDED = (255, 221, 0)  # yellow is in no part of the diverging colours


def data_uri(pixels: Pixels) -> str:
    """PNG, inline."""
    file = io.BytesIO()
    imsave(file, pixels, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class IntensityWindow:
    """Maps intensities ``low`` to black and ``high`` to white, linearly or logarithmically."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def of(cls, planes: Sequence[Plane], logarithmic: bool = False) -> IntensityWindow:
        """From the percentiles 1 (10 for a logarithm, which lifts the background) and 99.7 of what is not zero."""
        voxels = np.concatenate([p[p != 0] for p in planes]) if any(p.any() for p in planes) else np.zeros(1)
        low, high = np.percentile(voxels, (10 if logarithmic else 1, 99.7))
        if not logarithmic and low < 0.25 * high:
            low = min(low, 0.0)  # a dark background stays what it is: black
        return cls(float(low), float(max(high, low + 1e-6)), logarithmic)

    def __call__(self, plane: Plane) -> NDArray[np.float64]:
        """In [0, 1]."""
        value = np.clip((plane - self.low) / (self.high - self.low), 0, 1)
        return np.asarray(np.log1p(value / SHOWN_FLOOR) / np.log1p(1 / SHOWN_FLOOR) if self.logarithmic else value, np.float64)


def gray(value: NDArray[np.float64]) -> Pixels:
    """(rows, columns) in [0, 1] -> (rows, columns, 3)."""
    return _bytes(np.repeat(value[..., None], 3, axis=-1))


def overlay(fixed: NDArray[np.float64], moved: NDArray[np.float64]) -> Pixels:
    """Fixed in magenta, moved in green: grey where they agree."""
    return _bytes(np.stack([fixed, moved, fixed], -1))


def checkerboard(fixed: NDArray[np.float64], moved: NDArray[np.float64]) -> Pixels:
    """Alternating tiles of fixed and moved."""
    tile = max(1, -(-max(fixed.shape) // TILES))
    rows, columns = np.indices(fixed.shape) // tile
    return gray(np.where((rows + columns) % 2 == 0, fixed, moved))


@dataclass(frozen=True)
class Scale:
    """A colour map over ``low`` to ``high``, linear in the value, or in its logarithm to base 2."""

    colours: str
    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, plane: NDArray[np.floating]) -> Pixels:
        """(rows, columns, 3). On a logarithmic scale values of zero and less are painted as folds."""
        positive = plane > 0 if self.logarithmic else np.ones(plane.shape, bool)
        value = np.log2(np.where(positive, plane, 1)) if self.logarithmic else plane
        pixels = _bytes(colormaps[self.colours]((value - self.low) / (self.high - self.low))[..., :3])
        pixels[~positive] = FOLDED
        return pixels

    @property
    def gradient(self) -> str:
        """The stops of a CSS gradient."""
        stops = colormaps[self.colours](np.linspace(0, 1, 17))[:, :3]
        return ", ".join("#" + "".join(f"{int(v):02x}" for v in _bytes(s)) for s in stops)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Positions in percent, and labels."""
        values = np.linspace(self.low, self.high, count)
        shown = 2.0**values if self.logarithmic else values
        return [(100.0 * k / (count - 1), f"{v:.2f}" if self.logarithmic else f"{v:.3g}") for k, v in enumerate(shown)]


def jacobian_scale(warps: Sequence[Warp]) -> Scale:
    """Symmetric about 1, wide enough for 99 % of the pixels, between 1.25 and 4 to either side."""
    seen = np.concatenate([w.determinant.ravel() for w in warps])
    positive = seen[seen > 0]
    reach = float(np.percentile(np.abs(np.log2(positive)), 99)) if positive.size else 1.0
    reach = float(np.clip(reach, np.log2(1.25), 2))
    return Scale("RdBu_r", -reach, reach, logarithmic=True)


def magnitude_scale(warps: Sequence[Warp]) -> Scale:
    """From zero to the 99.9th percentile of the lengths."""
    lengths = np.concatenate([np.linalg.norm(w.u, axis=0).ravel() for w in warps])
    return Scale("magma", 0.0, max(float(np.percentile(lengths, 99.9)), 1e-6))


def grid_lines(warp: Warp) -> list[str]:
    """Points of SVG polylines: a regular grid of the view, each point moved by the displacement in the plane."""
    view = warp.view
    index = np.zeros((*warp.u.shape[1:], 3))
    axes = sorted((view.down, view.right))
    first, second = np.indices(warp.u.shape[1:])
    index[..., axes[0]], index[..., axes[1]] = first, second
    index += np.moveaxis(np.tensordot(view.grid.world_to_index[:3, :3], warp.u, 1), 0, -1)
    page = view.on_page(index)
    every = max(view.shape) * view.pixel / LINES
    steps = [max(1, round(every / view.grid.spacing[a])) for a in axes]
    lines = [page[k, :: max(1, steps[1] // 4)] for k in range(steps[0] // 2, page.shape[0], steps[0])]
    lines += [page[:: max(1, steps[0] // 4), k] for k in range(steps[1] // 2, page.shape[1], steps[1])]
    return [" ".join(f"{x:.1f},{y:.1f}" for x, y in line) for line in lines]


def _bytes(value: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.rint(np.clip(value, 0, 1) * 255), np.uint8)

"""A resampled image as the chunks of a multiscale one, each computed when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import counted
from daskreg.grid import Grid, Region
from daskreg.lazy.byte_cache import ByteCache
from daskreg.lazy.coarse_levels import CoarseLevel, level_for, link_levels, links_for, stack_levels
from daskreg.lazy.resample import Resampler
from daskreg.storage import Stack
from daskreg.storage.axes import SPACE, Axis, display
from daskreg.storage.zarr.ngff05 import group_attributes
from daskreg.storage.zarr.pyramid import CHUNK, Factors, block_mean, block_mode, pyramid, steps
from daskreg.storage.zarr.virtual import VirtualArray
from daskreg.transforms.link import Link

Coarse = Literal["auto", "means", "sampled"]
MEANS_VOXELS = 1 << 26  # of an image and channel up to which coarser levels are means of the finest: some seconds of resampling
SAMPLES = 3  # boxes along each axis from which a display window is estimated
SAMPLE_EDGE = 32  # voxels along each axis of such a box
PERCENTILES = 1.0, 99.9


@dataclass(frozen=True)
class ResampledSource:
    """What is resampled.

    stack: the finest voxels, all channels and times;  stored: its coarser levels as its file has them, on the same axes;
    links, unit: the transform;  fields: levels of the displacement of the only link, where they are stored
    """

    stack: Stack
    links: tuple[Link, ...] = ()
    unit: str | None = None
    stored: tuple[Stack, ...] = ()
    fields: Sequence[CoarseLevel] | None = None


@dataclass(frozen=True)
class Sampling:
    """How it is resampled: see ``resampled``.  coarse: whether coarser levels are means of the finest, or sampled."""

    interpolation: str = "linear"
    fill: float = 0
    device: Literal["cpu", "cuda"] = "cpu"
    coarse: Coarse = "auto"

    @property
    def labels(self) -> bool:
        """Whether voxels are labels."""
        return self.interpolation in ("nearest", "label")


@dataclass(frozen=True, eq=False, repr=False)
class VirtualImage:
    """An image on a grid, in levels of chunks of 64 voxels along each axis.

    Level 0 has the values of ``apply``. Coarser levels are means (of labels: modes) of the level before, as ``apply`` writes
    them, where ``means``; else each is sampled, at its own voxels, from levels of the image and of the displacement that are
    about as coarse, so that no chunk reads more than its own surroundings.
    """

    name: str
    grid: Grid
    lead: tuple[Axis, ...]
    lengths: tuple[int, ...]
    dtype: np.dtype[Any]
    samplers: tuple[Resampler, ...]
    cache: ByteCache
    labels: bool = False
    factors: tuple[Factors, ...] = field(default=())
    window_of: dict[int, tuple[float, float]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"VirtualImage({self.name}, {self.grid.summary()}, {self.dtype}, {counted(len(self.factors), 'level')})"

    @property
    def means(self) -> bool:
        """Whether coarser levels are means of the finest one."""
        return len(self.samplers) == 1

    @property
    def arrays(self) -> Mapping[str, VirtualArray]:
        """Each level by its path."""
        return {str(k): self._array(k) for k in range(len(self.factors))}

    def _array(self, level: int) -> VirtualArray:
        shape = self.grid.coarsen(self.factors[level]).shape
        chunks = (*(1 for _ in self.lengths), *(min(CHUNK, n) for n in shape))
        return VirtualArray((*self.lengths, *shape), chunks, self.dtype, (*(a.name for a in self.lead), *SPACE))

    def attributes(self, color: str) -> dict[str, Any]:
        """Of an OME-NGFF 0.5 group. color: of the image, RRGGBB, where it has no channels with colours of their own."""
        levels = [(str(k), f) for k, f in enumerate(self.factors)]
        found = group_attributes(self.grid, levels, self.name, self._kind, lead=self.lead)
        found["ome"].setdefault("omero", self._displayed(color))
        return found

    @property
    def _kind(self) -> str:
        """What coarser levels are, for the metadata."""
        return "resampled" if not self.means else "mode" if self.labels else "mean"

    def _displayed(self, color: str) -> Mapping[str, Any]:
        channel = next((k for k, a in enumerate(self.lead) if a.kind == "channel"), None)
        count = 1 if channel is None else self.lengths[channel]
        names = [self.name] if count == 1 else [str(k) for k in range(count)]
        shown: dict[str, Any] = dict(display(names, [color] if count == 1 else [], None))
        for k, entry in enumerate(shown["channels"]):
            low, high = self.window(k)
            entry["window"] = {"min": low, "max": high, "start": low, "end": high}
        return shown

    def window(self, channel: int = 0) -> tuple[float, float]:
        """The intensities between which a channel is displayed, from some boxes of it."""
        if channel not in self.window_of:
            lead = tuple(range(channel, channel + 1) if a.kind == "channel" else range(1) for a in self.lead)
            values = np.concatenate([self.samplers[0](box, *lead).ravel() for box in self._samples()]).astype(float)
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, PERCENTILES).tolist() if values.size else (0.0, 1.0)
            self.window_of[channel] = (low, high if high > low else low + 1.0)
        return self.window_of[channel]

    def _samples(self) -> list[Region]:
        edges = [min(SAMPLE_EDGE, n) for n in self.grid.shape]
        starts = [
            sorted({round((n - e) * (k + 0.5) / SAMPLES) for k in range(SAMPLES)})
            for n, e in zip(self.grid.shape, edges, strict=True)
        ]
        return [Region.of(at, (a + e for a, e in zip(at, edges, strict=True))) for at in product(*starts)]

    def chunk(self, level: int, index: tuple[int, ...]) -> NDArray[Any]:
        """A whole chunk, (1, .., Z, Y, X), zero beyond the edge of the image. Raises Unreadable."""
        return self.cache.get((id(self), level, index), partial(self._computed, level, index))

    def _computed(self, level: int, index: tuple[int, ...]) -> NDArray[Any]:
        array = self._array(level)
        start = [i * c for i, c in zip(index[-3:], array.chunks[-3:], strict=True)]
        box = Region.of(start, (min(a + c, n) for a, c, n in zip(start, array.chunks[-3:], array.shape[-3:], strict=True)))
        lead = tuple(index[:-3])
        sampled = level < len(self.samplers)
        voxels = self._sampled(level, lead, box) if sampled else self._reduced(level, lead, box)
        whole = np.zeros(array.chunks, self.dtype)
        whole[(0,) * len(lead)][Region((0, 0, 0), box.shape).slices] = voxels
        return whole

    def _sampled(self, level: int, lead: tuple[int, ...], box: Region) -> NDArray[Any]:
        return self.samplers[level](box, *(range(i, i + 1) for i in lead)).reshape(box.shape)

    def _reduced(self, level: int, lead: tuple[int, ...], box: Region) -> NDArray[Any]:
        """Means of chunks of the level below."""
        step = steps(self.factors)[level - 1]
        below = self._array(level - 1)
        ends = zip(box.start, box.stop, step, below.shape[-3:], strict=True)
        start, stop = zip(*((a * k, min(b * k, n)) for a, b, k, n in ends), strict=True)
        fine = self._region(level - 1, lead, Region.of(start, stop))
        return (block_mode if self.labels else block_mean)(fine, step)

    def _region(self, level: int, lead: tuple[int, ...], region: Region) -> NDArray[Any]:
        """Voxels of a level, (Z, Y, X), from its chunks."""
        out, size = np.empty(region.shape, self.dtype), self._array(level).chunks[-3:]
        ranges = (range(a // c, -(-b // c)) for a, b, c in zip(region.start, region.stop, size, strict=True))
        for at in product(*ranges):
            start = Region.of(
                (i * c for i, c in zip(at, size, strict=True)), ((i + 1) * c for i, c in zip(at, size, strict=True))
            )
            part = start & region
            chunk = self.chunk(level, (*lead, *at)).reshape(size)
            out[part.within(region)] = chunk[part.within(start)]
        return out


def virtual_image(name: str, source: ResampledSource, grid: Grid, how: Sampling, cache: ByteCache) -> VirtualImage:
    """A source through its transform on a grid, all channels and times. Raises InputError in all its forms."""
    factors = pyramid(grid)
    wanted = how.coarse == "means" or (how.coarse == "auto" and grid.size <= MEANS_VOXELS)
    count = 1 if wanted else len(factors)
    samplers = tuple(_samplers(source, [grid.coarsen(f) for f in factors[:count]], how))
    stack, native = source.stack, source.stack.dtype.newbyteorder("=")
    dtype = np.dtype(np.uint8) if native.kind == "b" else native
    return VirtualImage(name, grid, stack.lead, tuple(stack.data.shape[:-3]), dtype, samplers, cache, how.labels, tuple(factors))


def _samplers(source: ResampledSource, grids: Sequence[Grid], how: Sampling) -> list[Resampler]:
    """What computes the voxels of each level that is sampled."""
    given = how.interpolation, how.device, how.fill
    found = [Resampler(source.stack, grids[0], source.links, source.unit, _at_voxels(source, grids[0]) or given[0], *given[1:])]
    if len(grids) == 1:
        return found
    images, fields = stack_levels(source.stack, source.stored, labels=how.labels), link_levels(source.links, source.fields)
    for grid in grids[1:]:
        place = grid.to_unit(source.unit)
        level = level_for([replace(v, grid=v.grid.to_unit(source.unit)) for v in images], place)
        stack = replace(source.stack, data=level.data, grid=level.grid)
        found.append(Resampler(stack, grid, links_for(source.links, fields, place), source.unit, *given))
    return found


def _at_voxels(source: ResampledSource, grid: Grid) -> str:
    """nearest, which changes no bit, where voxels are taken as they are: no transform, and one grid."""
    return "nearest" if not source.links and source.stack.grid == grid else ""

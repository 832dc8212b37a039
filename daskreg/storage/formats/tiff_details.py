"""What TIFF files of OME and ImageJ state of their voxels: axes, sizes, times, channels."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from daskreg.errors import UnitsError
from daskreg.grid import unit_name
from daskreg.storage.axes import KINDS, Axis
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.zarr.multiscale import one_unit

log = logging.getLogger(__name__)

MICROMETRES = "\N{MICRO SIGN}m"  # what OME means where it names no unit
SAMPLES, UNNAMED = "S", "IQ"  # tifffile's names of the components of a pixel, and of axes that nothing names
BY_PLACE = "vlaehrpiqtcz"  # what those are, from the last: z, then c, then t, then letters of no meaning


class TiffDetails:
    """What a file says of the voxels of a series.

    sizes: of a voxel, z, y, x, of its first level, each None where it is not stated;  spacing: the same where all are stated;
    unit: of length;  interval: seconds between two times;  channels: their names;  colors: of channels, RRGGBB
    """

    def __init__(
        self,
        kind: str,
        sizes: Sequence[float | None] = (),
        unit: str | None = None,
        interval: float = 1.0,
        channels: tuple[str, ...] = (),
        colors: tuple[str, ...] = (),
    ) -> None:
        self.kind, self.unit, self.interval = kind, unit, interval
        self.sizes = tuple(s if s is not None and s > 0 and math.isfinite(s) else None for s in sizes)
        known = tuple(s for s in self.sizes if s is not None)
        self.spacing = known if len(known) == 3 else None
        self.channels, self.colors = channels, colors

    @classmethod
    def of(cls, file: Any, number: int) -> TiffDetails:
        """Of a series."""
        if file.is_ome:
            return cls._of_ome(file, number)
        return cls._of_imagej(file) if file.is_imagej else cls("TIFF")

    @classmethod
    def _of_ome(cls, file: Any, number: int) -> TiffDetails:
        image = _ome_image(file, number)
        pixels = None if image is None else _child(image, "Pixels")
        if pixels is None:
            return cls("OME-TIFF")
        stated = [pixels.get(f"PhysicalSize{axis}") for axis in "ZYX"]
        units = [_known_unit(file.filename, pixels.get(f"PhysicalSize{axis}Unit", MICROMETRES)) for axis in "ZYX"]
        unit, factors = one_unit(file.filename, units)
        sizes = [None if s is None else float(s) * k for s, k in zip(stated, factors, strict=True)]
        stated = _children(pixels, "Channel")
        channels = tuple(c.get("Name") or c.get("ID") or str(k) for k, c in enumerate(stated))
        interval = float(pixels.get("TimeIncrement") or 1.0)
        return cls("OME-TIFF", sizes, unit, interval, channels, _colors(stated))

    @classmethod
    def _of_imagej(cls, file: Any) -> TiffDetails:
        known, tags = file.imagej_metadata or {}, file.pages[0].tags
        depth, across = known.get("spacing"), [_pixel_size(tags.get(name)) for name in ("YResolution", "XResolution")]
        stated = [abs(float(depth)) if depth else None, *across]  # negative where the stack was turned upside down
        return cls("ImageJ TIFF", stated, _known_unit(file.filename, known.get("unit")), float(known.get("finterval") or 1.0))

    def axes(self, names: str) -> tuple[Axis, ...]:
        """Of an array with tifffile's names; axes without one by their place, the components of a pixel as channels."""
        channels = "c" if "C" not in names else "s"
        given = [channels if n == SAMPLES else "" if n in UNNAMED else n.lower() for n in names]
        left = [n for n in BY_PLACE if n not in given]
        places = [k for k, n in enumerate(given) if not n]
        for k, name in zip(reversed(places), reversed(left), strict=False):
            given[k] = name
        return tuple(replace(self._axis(name), stated=n not in UNNAMED) for n, name in zip(names, given, strict=True))

    def _axis(self, name: str) -> Axis:
        kind = KINDS.get(name, "other")
        if kind == "time" and self.interval != 1.0:
            return Axis(name, kind, "second", scale=self.interval)
        return Axis(name, kind, self.unit if kind == "space" else None)

    def grid(self, shape: tuple[int, ...] | None, finest: tuple[int, ...] | None) -> GridMetadata | None:
        """Of a level of a shape (z, y, x) whose first level has another; voxels of coarser ones cover whole blocks of it."""
        if self.spacing is None or shape is None or finest is None:
            return None
        factors = [round(n / max(m, 1)) or 1 for n, m in zip(finest, shape, strict=True)]
        shift = triple((f - 1) / 2 * s for f, s in zip(factors, self.spacing, strict=True))
        return GridMetadata(triple(f * s for f, s in zip(factors, self.spacing, strict=True)), shift, unit=self.unit)


def _ome_image(file: Any, number: int) -> Any:
    """The OME element of a series: by its name, or by its number where there are as many; None where it is not clear which."""
    images = _children(ElementTree.fromstring(file.ome_metadata), "Image")
    named = [i for i in images if i.get("Name") == file.series[number].name]
    if len(named) == 1:
        return named[0]
    return images[number] if len(images) == len(file.series) else None


def _children(element: Any, name: str) -> list[Any]:
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def _child(element: Any, name: str) -> Any:
    return next(iter(_children(element, name)), None)


def _colors(channels: Sequence[Any]) -> tuple[str, ...]:
    """RRGGBB of each, from OME's signed 32 bits of RGBA; empty where one of them states none."""
    words = [str(c.get("Color") or "") for c in channels]
    known = all(re.fullmatch(r"-?\d+", w) for w in words)
    return tuple(f"{(int(w) >> 8) & 0xFFFFFF:06X}" for w in words) if known else ()


def _known_unit(path: str, stated: Any) -> str | None:
    word = str(stated or "").replace("\\u00B5", "\N{MICRO SIGN}").strip()
    if word in ("reference frame", ""):
        return None
    try:
        return unit_name(word)
    except UnitsError:
        log.warning("%s: its unit %r is not known here, so that its voxel size has none; give '::unit='.", path, word)
        return None


def _pixel_size(tag: Any) -> float | None:
    """Of a resolution, which is pixels a unit."""
    count, length = tag.value if tag is not None else (0, 1)
    return float(length) / float(count) if count else None

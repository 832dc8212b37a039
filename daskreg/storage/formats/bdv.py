"""Images of BigDataViewer and BigStitcher: an XML file, and voxels in HDF5 or N5."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import NotFound, UnitsError, Unreadable
from daskreg.grid import Grid, unit_name
from daskreg.storage.axes import Axis
from daskreg.storage.format import ImageFormat, first_bytes
from daskreg.storage.formats.bdv_voxels import LOADERS, Loader
from daskreg.storage.formats.lazy import Box, lazy_voxels
from daskreg.storage.formats.levels import chosen_level
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.errors import read_errors, require_exists
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.zarr.nodes import check_dtype, dask_chunks

log = logging.getLogger(__name__)

ROOT = "SpimData"
SAME = 1e-6  # by which two registrations, and a scale and 1, may differ, relatively
NEAR_ONE = 0.02  # registrations scale an image by less; by more where they are in pixels
REVERSED = np.ix_([2, 1, 0, 3], [2, 1, 0, 3])  # x, y, z, 1 -> z, y, x, 1
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Setup:
    """A view of the sample: a channel, a tile, an angle. sizes: of a voxel, z, y, x;  what: its attributes but the channel."""

    number: int
    name: str
    sizes: tuple[float, float, float] | None
    unit: str | None
    what: tuple[tuple[str, str], ...]
    channel: str


class BdvImage(ImageFormat):
    """Views of BigDataViewer: times and channels, or one view of several; placed by their registrations."""

    name = "BigDataViewer"
    endings = (".xml",)
    writes = False
    leading_axes = True
    remote = False

    def sniff(self, path: str) -> bool:
        """By the root of the XML."""
        return f"<{ROOT}".encode() in first_bytes(path, 4096)

    def open(self, address: Address) -> ImageRecord:
        """The views of all channels, or the one that ``::array=`` names by number or name; the level ``::level=``."""
        path = address.path
        root = _root(path)
        setups, times, places = _setups(path, root), _times(path, root), _registrations(path, root)
        loader = _loader(path, root, fill=address.missing == "fill")
        chosen = _chosen(address, setups, places, times[0])
        levels = [loader.levels(times[0], s.number) for s in chosen]
        if any(len(one) != len(levels[0]) or one[0].shape != levels[0][0].shape for one in levels):
            raise Unreadable(f"{path}: its channels have different shapes; choose one with '::array={chosen[0].number}'.")
        level = chosen_level(address, len(levels[0]))
        stored = levels[0][level]
        check_dtype(stored.dtype, path)
        grids = [_grid(path, chosen[0], places.get((times[0], chosen[0].number)), one.factors) for one in levels[0]]
        _tell_of_motion(path, [places.get((t, chosen[0].number)) for t in times])
        shape = (len(times), len(chosen), *stored.shape)
        read = partial(_read, loader, tuple(times), tuple(s.number for s in chosen), level, stored.dtype)
        blocks = 1, 1, *dask_chunks(stored.shape, stored.block, None, stored.dtype.itemsize)
        voxels = lazy_voxels(read, shape, stored.dtype, blocks)
        axes = (Axis("t", "time"), Axis("c", "channel"), *(Axis(n, "space", grids[level].unit) for n in "zyx"))
        resolutions = tuple(
            Resolution(str(k), one.shape, g.spacing) for k, (one, g) in enumerate(zip(levels[0], grids, strict=True))
        )
        names = tuple(s.channel for s in chosen)
        return ImageRecord(
            address.text, f"{self.name}, {loader.name}", voxels, axes, grids[level], (1, 1, *stored.block), resolutions, names
        )


def _read(
    loader: Loader, times: Sequence[int], setups: Sequence[int], level: int, dtype: np.dtype[Any], box: Box
) -> NDArray[Any]:
    t, c, *inner = box
    found = np.zeros([s.stop - s.start for s in box], dtype)
    for i, time in enumerate(times[t]):
        for k, setup in enumerate(setups[c]):
            voxels = loader.read(time, setup, level, tuple(inner))
            if voxels is not None:
                found[i, k] = voxels
    return found


# ---------------------------------------------------------------- what the XML says


def _root(path: str) -> Any:
    require_exists(path)
    with read_errors(path):
        root = ElementTree.parse(path).getroot()
    if root.tag != ROOT:
        raise Unreadable(f"{path} is an XML file of {root.tag!r}; one of BigDataViewer ({ROOT}) was expected.")
    return root


def _loader(path: str, root: Any, *, fill: bool) -> Loader:
    found = root.find("SequenceDescription/ImageLoader")
    kind = "none" if found is None else str(found.get("format"))
    if found is None or kind not in LOADERS:
        raise Unreadable(
            f"{path}: its voxels are kept as {kind!r}; {', '.join(LOADERS)} are read: resave it as HDF5 or N5 in BigStitcher."
        )
    tag, loader = LOADERS[kind]
    place = found.find(tag)
    if place is None or not place.text:
        raise Unreadable(f"{path} does not say where its voxels are ({tag}); repair it.")
    folder = os.path.join(os.path.dirname(path), root.findtext("BasePath") or ".")
    where = os.path.normpath(place.text if place.get("type") == "absolute" else os.path.join(folder, place.text))
    if not os.path.exists(where):
        raise NotFound(f"{path}: its voxels are said to be at {where}, which does not exist; copy them there.")
    return loader(where, fill)


def _setups(path: str, root: Any) -> list[Setup]:
    names = {
        (str(a.get("name")), e.findtext("id")): e.findtext("name")
        for a in root.findall("SequenceDescription/ViewSetups/Attributes")
        for e in a
    }
    found = [_setup(path, e, names) for e in root.findall("SequenceDescription/ViewSetups/ViewSetup")]
    if not found:
        raise Unreadable(f"{path} lists no views (ViewSetup); it may be damaged: copy it again.")
    return found


def _setup(path: str, element: Any, names: Mapping[tuple[str, str | None], str | None]) -> Setup:
    number = int(element.findtext("id") or 0)
    sizes = _numbers(path, element.findtext("voxelSize/size"), 3)
    word = (element.findtext("voxelSize/unit") or "").replace("\\u00B5", "\N{MICRO SIGN}").strip()
    what = {a.tag: a.text or "" for a in element.iterfind("attributes/*")}
    channel = what.pop("channel", None)
    label = names.get(("channel", channel)) or element.findtext("name") or str(number)
    usable = None if sizes is None or min(sizes) <= 0 else triple(reversed(sizes))
    unit = None if usable is None else _unit(path, word)
    return Setup(number, element.findtext("name") or str(number), usable, unit, tuple(sorted(what.items())), label)


def _unit(path: str, word: str) -> str | None:
    try:
        return unit_name(word) if word and not word.lower().startswith("pixel") else None
    except UnitsError as error:
        raise Unreadable(f"{path}: {error}") from None


def _numbers(path: str, text: str | None, count: int) -> list[float] | None:
    if not text:
        return None
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        found = []
    if len(found) != count or not all(math.isfinite(v) for v in found):
        raise Unreadable(f"{path} states {text.strip()[:80]!r}; {count} numbers were expected: repair it.")
    return found


def _times(path: str, root: Any) -> list[int]:
    found = root.find("SequenceDescription/Timepoints")
    kind = "range" if found is None else found.get("type")
    if found is None:
        return [0]
    if kind == "range":
        return list(range(int(found.findtext("first") or 0), int(found.findtext("last") or 0) + 1))
    text = found.findtext("integerpattern") or ""
    try:
        times = [k for part in text.split(",") if part.strip() for k in _pattern(part)]
    except ValueError:
        times = []
    if not times:
        raise Unreadable(f"{path}: its timepoints are {kind} {text!r}, which is not read; a range was expected.")
    return times


def _pattern(part: str) -> range:
    """``3``, ``0-9`` or ``0-9:2``."""
    ends, _, step = part.strip().partition(":")
    first, _, last = ends.partition("-")
    return range(int(first), int(last or first) + 1, int(step or 1))


def _registrations(path: str, root: Any) -> dict[tuple[int, int], Matrix]:
    """Pixel to world (4, 4), x, y, z, 1, of every time and view: of several transformations the last one is applied first."""
    found = {}
    for view in root.findall("ViewRegistrations/ViewRegistration"):
        total = np.eye(4)
        for element in view.findall("ViewTransform/affine"):
            numbers = _numbers(path, element.text, 12)
            total = total @ np.vstack([np.reshape(numbers or np.eye(4)[:3], (3, 4)), [0, 0, 0, 1]])
        found[int(view.get("timepoint", 0)), int(view.get("setup", 0))] = total
    return found


# ---------------------------------------------------------------- which views, and where they are


def _chosen(address: Address, setups: Sequence[Setup], places: Mapping[tuple[int, int], Matrix], time: int) -> list[Setup]:
    """The view that ``::array=`` names, else all where only their channels differ. Raises NotFound, Unreadable listing them."""
    listed = ", ".join(f"{s.number} ({s.name})" for s in setups)
    if address.array is not None:
        found = [s for s in setups if address.array in (str(s.number), s.name)]
        if len(found) != 1:
            raise NotFound(f"{address.path} has no view {address.array!r}; it has {listed}.")
        return found
    first, place = setups[0], places.get((time, setups[0].number))
    for other in setups[1:]:
        same = (other.sizes, other.unit, other.what) == (first.sizes, first.unit, first.what)
        if not same or not _equal(place, places.get((time, other.number))):
            raise Unreadable(
                f"{address.path} holds {len(setups)} views in different places; choose one with '::array={first.number}' "
                f"(there are {listed})."
            )
    return list(setups)


def _equal(a: Matrix | None, b: Matrix | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=SAME, atol=SAME * float(np.abs(a).max())))


def _grid(path: str, setup: Setup, place: Matrix | None, factors: tuple[int, int, int]) -> GridMetadata:
    """Of a level: by its registration, which is in pixels or in the unit of the voxel size, or by the voxel size alone."""
    sizes = setup.sizes or (1.0, 1.0, 1.0)
    matrix = np.diag([*sizes, 1.0])
    if place is not None:
        matrix = place[REVERSED].copy()
        scale = (math.prod(sizes) / abs(np.linalg.det(matrix[:3, :3]))) ** (1 / 3) if np.linalg.det(matrix[:3, :3]) else 1.0
        matrix[:3] *= 1.0 if abs(scale - 1) < NEAR_ONE else scale
    with read_errors(path):
        grid = Grid.from_matrix((1, 1, 1), matrix, setup.unit, oriented=False)
    moved = grid.to_world((np.asarray(factors) - 1) / 2)
    spacing = triple(s * f for s, f in zip(grid.spacing, factors, strict=True))
    return GridMetadata(spacing, direction=grid.direction, unit=setup.unit, origin=triple(moved), sized=setup.sizes is not None)


def _tell_of_motion(path: str, places: Sequence[Matrix | None]) -> None:
    if not all(_equal(places[0], p) for p in places[1:]):
        _warn_of_motion(path)


@cache  # once a file
def _warn_of_motion(path: str) -> None:
    log.warning("%s: its registrations move the view from one time to the next; that of the first time is taken for all.", path)

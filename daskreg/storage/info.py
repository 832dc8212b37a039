"""Description of an image or run as text and as JSON, also of one that cannot be registered as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.deferred import DeferredModule
from daskreg.errors import InputError, NotFound, Unreadable, VoxelError
from daskreg.grid import Grid
from daskreg.html import Printable
from daskreg.storage.formats.run import Run
from daskreg.storage.fs.address import Address, parse_address
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.images import ImageSource, grid_of, open_record, open_volume
from daskreg.storage.registry import image_formats
from daskreg.storage.runs.layout import DISPLACEMENT
from daskreg.storage.runs.run import RunStore
from daskreg.storage.selection import select, selection
from daskreg.storage.volume import Volume
from daskreg.storage.zarr.collections import SeveralImages

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

Numbers = tuple[float, ...]


@dataclass(frozen=True, repr=False)
class VolumeInfo(Printable):
    """shape and chunks along ``axes`` as stored; spacing, origin (z, y, x) and direction as in Grid, None where unknown;
    axes_stated: False where the file names no axes, so that they are a guess;  axes_given: whether the address names them;
    sized: False where the spacing of ``levels`` is not stated;  unit_stated: False where the unit is that which readers take;
    hint: why it cannot be registered as it is, and what to type;  values: least and largest voxel, None where they were not read;
    chosen: index of the channel and of the time that the address chooses, and the level, as it names it;
    run: state of a RUN.zarr;  contents: names of the images of a plate, a well or a converted file, where one has to be chosen.
    """

    name: str
    format: str
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    dtype: str = ""
    chunks: tuple[int, ...] = ()
    spacing: Numbers | None = None
    origin: Numbers | None = None
    direction: tuple[Numbers, ...] | None = None
    unit: str | None = None
    oriented: bool = False
    levels: tuple[Resolution, ...] = ()
    channels: tuple[str, ...] = ()
    hint: str | None = None
    values: tuple[float, float] | None = None
    run: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    axes_stated: bool = True
    axes_given: bool = False
    sized: bool = True
    unit_stated: bool = True
    chosen: dict[str, int | str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; what ``run`` holds, such as the verdict, by its own name too."""
        return asdict(self) | self.run

    def lines(self) -> list[str]:
        """Human-readable summary, a fact per line."""
        rows = [("image", self.name), ("format", self.format)]
        rows += _array_rows(self) if self.shape else []
        rows += [("chosen", ", ".join(f"{k} {v}{self._label(k, v)}" for k, v in self.chosen.items()))] if self.chosen else []
        rows += _grid_rows(self) if self.spacing else []
        rows += [(f"level {i}", f"{_joined(v.shape)}{self._at(v)}  ({v.path})") for i, v in enumerate(self.levels)]
        order = {"affine": f"  (z, y, x, 1; {self.unit or '(no unit)'})"}
        rows += [(k.replace("_", " "), f"{_text(v)}{order.get(k, '')}") for k, v in self.run.items()]
        rows += [(k, ", ".join(v)) for k, v in self.contents.items()]
        rows += [("values", "{:.6g} to {:.6g}, all of them finite and read".format(*self.values))] if self.values else []
        rows += [("hint", self.hint)] if self.hint else []
        return [f"{k:<10} {v}" for k, v in rows]

    def _label(self, kind: str, index: int | str) -> str:
        """The name of a channel that has one."""
        return f" ({self.channels[index]})" if kind == "channel" and isinstance(index, int) and self.channels else ""

    def _at(self, level: Resolution) -> str:
        """The voxel size of a level, where the file states it."""
        return f" at {_joined(level.spacing)} {self.unit or '(no unit)'}" if self.sized else ""


def describe(source: ImageSource | Volume, voxels: bool = False) -> VolumeInfo:
    """Describe what is at an address, or an array.

    voxels: read all of them, of all channels and time points unless the address chooses one.

    Raises NotFound and Unreadable, VoxelError for voxels that are not finite.
    """
    if not isinstance(source, str | Path):
        return _of_volume(open_volume(source))
    address = parse_address(source)
    if not any(f.single_file for f in image_formats.by_ending(address.path)) and Run().sniff(address.node):
        return _of_run(address.node)
    try:
        record = open_record(address)
    except SeveralImages as error:
        return _of_collection(error, address)
    found = _of_record(record, address)
    return replace(found, values=_range(record, address)) if voxels else found


def _of_collection(error: SeveralImages, address: Address) -> VolumeInfo:
    images = error.images
    return VolumeInfo(address.text, f"OME-Zarr, {images.kind}", hint=str(error), contents=images.titled())


def _range(record: ImageRecord, address: Address) -> tuple[float, float]:
    """The least and the largest voxel. Raises Unreadable, and VoxelError for voxels that are not finite."""
    with read_errors(record.name):
        data, _ = select(record, address, keep=True)
        low, high = da.compute(data.min(), data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VoxelError(f"{record.name} has voxels that are not finite numbers ({low} to {high}); replace them first.")
    return float(low), float(high)


def _of_record(record: ImageRecord, address: Address) -> VolumeInfo:
    grid, hint = None, None
    try:
        grid = grid_of(record, address)
    except NotFound:  # a channel or time that the address chooses: nothing else is described in its place
        raise
    except InputError as error:
        hint = str(error)
        grid = _shared_grid(record, address)
    fields = _grid_fields(grid) if grid else {"unit": record.grid_metadata.unit if record.grid_metadata else address.unit}
    return VolumeInfo(
        record.name,
        record.format,
        record.shape,
        tuple(a.name for a in record.axes),
        str(record.dtype),
        tuple(record.chunks),
        levels=record.levels,
        channels=record.channels,
        hint=hint,
        axes_stated=all(a.stated for a in record.axes),
        axes_given=address.axes is not None,
        sized=record.grid_metadata is not None and record.grid_metadata.sized,
        unit_stated=address.unit is not None or record.grid_metadata is None or record.grid_metadata.unit_stated,
        chosen=_chosen(record, address),
        **fields,
    )


def _chosen(record: ImageRecord, address: Address) -> dict[str, int | str]:
    """What the address chooses of an image: a level as it says it, a channel and a time by index."""
    chosen: dict[str, int | str] = {} if address.level is None else {"level": address.level}
    index = selection(record, address, keep=True)
    for axis, at in zip(record.axes, index, strict=True):
        if getattr(address, axis.kind, None) is not None and isinstance(at, int):
            chosen[axis.kind] = at
    return chosen


def _shared_grid(record: ImageRecord, address: Address) -> Grid | None:
    """The grid of all channels and time points, where the image cannot be opened without choosing one."""
    space = [n for n, a in zip(record.shape, record.axes, strict=True) if a.kind == "space"]
    metadata = record.grid_metadata
    if metadata is None or len(space) != 3 or not (metadata.sized or address.spacing):
        return None
    try:
        return metadata.grid(_zyx(record, space), address.spacing, address.unit)
    except InputError:
        return None


def _zyx(record: ImageRecord, space: Sequence[int]) -> tuple[int, ...]:
    names = [a.name for a in record.axes if a.kind == "space"]
    return tuple(space[names.index(n)] for n in "zyx") if set(names) == set("zyx") else tuple(space)


def _of_volume(volume: Volume) -> VolumeInfo:
    chunks = tuple(int(n) for n in volume.data.chunksize)
    return VolumeInfo(
        volume.name,
        volume.format,
        volume.shape,
        ("z", "y", "x"),
        str(volume.dtype),
        chunks,
        levels=volume.levels,
        channels=volume.channels,
        **_grid_fields(volume.grid),
    )


def _of_run(path: str) -> VolumeInfo:
    store = RunStore.attach(path)
    state, grid = store.state, store.fixed_grid
    run: dict[str, Any] = {
        "complete": store.complete,
        "started": state.get("started"),
        "finished": state.get("finished"),
        "fixed": grid_summary(grid),
        "moving": grid_summary(store.moving_grid),
        "affine": [[round(float(v), 6) for v in row] for row in store.affine],
        "displacement": store.has(DISPLACEMENT),
        "moved": store.has("moved"),
    }
    return VolumeInfo(path, "daskreg run", hint=None if store.complete else _incomplete(path), run=run, **_grid_fields(grid))


def _incomplete(path: str) -> str:
    try:
        RunStore.open(path)
    except InputError as error:
        return str(error)
    raise Unreadable(f"{path} changed while it was read; try again.")


def _grid_fields(grid: Grid) -> dict[str, Any]:
    return {
        "spacing": grid.spacing,
        "origin": grid.origin,
        "direction": grid.direction,
        "unit": grid.unit,
        "oriented": grid.oriented,
    }


def _array_rows(info: VolumeInfo) -> list[tuple[str, str]]:
    axes = f"{', '.join(info.axes)}{'; as given' * info.axes_given}"
    if not info.axes_stated:
        axes = f"not stated: taken as {' '.join(info.axes)}; '::axes=' names others"
    rows = [
        ("shape", f"{_joined(info.shape)}  ({axes})"),
        ("voxels", f"{info.dtype}, chunks {_joined(info.chunks)}"),
    ]
    return rows + ([("channels", ", ".join(info.channels))] if info.channels else [])


def grid_rows(grid: Grid) -> list[tuple[str, str]]:
    """Spacing, origin and direction, as rows of a table."""
    return _grid_rows(VolumeInfo("", "", **_grid_fields(grid)))


def _grid_rows(info: VolumeInfo) -> list[tuple[str, str]]:
    unit = info.unit or "(no unit)"
    stated = "" if info.oriented else "  (not stated: taken as LPS)"
    assumed = "" if info.unit_stated else f"; unit not stated: taken as {unit}"
    return [
        ("spacing", f"{_joined(info.spacing or ())} {unit}  (z x y x x{assumed})"),
        ("origin", f"{_joined(info.origin or (), ', ')} {unit}  (z, y, x; LPS)"),
        ("direction", f"{_text(info.direction)}{stated}"),
    ]


def grid_summary(grid: Grid) -> str:
    """Shape and spacing in one line."""
    return grid.summary()


def _joined(values: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{v:.6g}" for v in values)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "; ".join(_joined(row, " ") for row in np.asarray(value) + 0.0)
    return "-" if value is None else str(value)

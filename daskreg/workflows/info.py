"""``daskreg info``: describe an image, a run, a transform or points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from daskreg.arguments import checked_arguments
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, Unreadable
from daskreg.grid import Grid
from daskreg.html import Printable
from daskreg.lazy.load import FinishedRun, load_transform, path_of, transform_of
from daskreg.storage import RunStore, Volume, VolumeInfo
from daskreg.storage import describe as describe_image
from daskreg.storage.format import PointFormat, TransformFormat
from daskreg.storage.fs.address import is_remote, join, parse_address
from daskreg.storage.images import ImageSource
from daskreg.storage.info import grid_rows, grid_summary
from daskreg.storage.point_file import PointFile
from daskreg.storage.points import read_points
from daskreg.storage.registry import identify, transform_formats
from daskreg.storage.transforms import open_transform, require_no_image_keys
from daskreg.transforms.link import Link
from daskreg.workflows.evaluate import verdict_of

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

CHEAP = 1 << 30  # bytes of a field up to which its largest displacement is looked for


class Info(Protocol):
    """The description of a file, as text and as values."""

    def lines(self) -> list[str]:
        """A table, one fact a line."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""


@dataclass(frozen=True)
class PartInfo:
    """One link ``W(x + d(x))`` of a chain: W, (4, 4), world, z, y, x, 1; the grid of d and its largest length, world units.

    grid, largest: None where there is no d; largest is None too where d is larger than CHEAP bytes
    """

    affine: tuple[tuple[float, ...], ...]
    grid: Grid | None = None
    largest: float | None = None

    def rows(self, number: int, unit: str) -> list[tuple[str, str]]:
        """Human-readable summary."""
        rows = []
        if self.grid is not None:
            size = 12 * self.grid.size
            found = f"largest {self.largest:.4g} {unit}" if self.largest is not None else f"not computed ({size / 1e9:.1f} GB)"
            rows.append((f"part {number}", f"displacement on {grid_summary(self.grid)}, {found}"))
        if self.grid is None or not np.array_equal(self.affine, np.eye(4)):
            text = "; ".join(" ".join(f"{v:.6g}" for v in row) for row in np.asarray(self.affine)[:3] + 0.0)
            rows.append((f"part {number}" if not rows else "", f"affine {text}  (z, y, x, 1; {unit})"))
        return rows


@dataclass(frozen=True, repr=False)
class TransformInfo(Printable):
    """A transform in a file: points go through its parts in their order, from ``fixed`` to ``moving`` (grids, None: unknown).

    images: places of the fixed and the moving image, where a scene has them below it;
    made: how it came about, as far as the file says;  certificate: of an inverse
    """

    name: str
    format: str
    unit: str | None
    parts: tuple[PartInfo, ...]
    fixed: Grid | None = None
    moving: Grid | None = None
    images: tuple[str | None, str | None] = (None, None)
    made: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table, one fact a line."""
        unit = self.unit or "(no unit)"
        rows = [
            ("transform", self.name),
            ("format", self.format),
            ("maps", f"points of the fixed to points of the moving image; world, LPS, {unit}"),
            ("fixed", grid_summary(self.fixed) if self.fixed else "not stated: say where to with --like"),
            ("moving", grid_summary(self.moving) if self.moving else "not stated"),
        ]
        rows += [row for k, part in enumerate(self.parts, 1) for row in part.rows(k, unit)]
        grids = [(k, part.grid) for k, part in enumerate(self.parts, 1) if part.grid is not None]
        rows += [(f"{name} {k}" if len(grids) > 1 else name, text) for k, grid in grids for name, text in grid_rows(grid)[1:]]
        rows += [(f"{name} at", path) for name, path in zip(("fixed", "moving"), self.images, strict=True) if path]
        rows += _history(self.made) + _quality(self.certificate)
        return [f"{k:<10} {v}" for k, v in rows]


def _history(made: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not made:
        return []
    more = "".join(f", {k} {v}" for k, v in made.items() if k not in ("command", "of", "version", "at"))
    return [
        ("made", f"{made.get('at')} by 'daskreg {made.get('command')}' {made.get('version')} of {made.get('of') or '-'}{more}")
    ]


def _quality(certificate: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not certificate:
        return []
    text = f"there and back: mean {certificate['mean']:.2g}, largest {certificate['largest']:.2g} voxel"
    return [("inverse", f"{text}; {certificate['beyond_limit']} of {certificate['voxels']} beyond {certificate['limit']:g}")]


@dataclass(frozen=True, repr=False)
class PointsInfo(Printable):
    """Points in a file: how many, the corners of their box (x, y, z, as in the file), and the table's columns."""

    name: str
    points: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table, one fact a line."""
        rows = [("points", self.name), ("number", str(self.points))]
        rows += [("columns", ", ".join(self.columns))] if self.columns else []
        if self.points:
            spans = (f"{n} {a:.6g} to {b:.6g}" for n, a, b in zip("xyz", self.low, self.high, strict=True))
            rows.append(("box", ", ".join(spans) + "  (the file states neither space nor unit)"))
        return [f"{k:<10} {v}" for k, v in rows]


@checked_arguments()
def info(source: ImageSource | Volume | RunStore | FinishedRun, voxels: bool = False) -> Info:
    """Describe an image, a run (or its Result), a transform that ``daskreg apply`` takes, or points, in a file or at a URL.

    voxels: read all voxels of an image, or of the channel and time that its address chooses, which finds damaged parts. An image
    may be in memory too. Raises NotFound, Unreadable, IncompleteRun, and VoxelError.
    """
    address: Any = path_of(cast("Any", source))
    if address is None:
        raise ConfigError(f"{source!r} is in memory; a path, a URL or a Result was expected.")
    if not isinstance(address, str | Path):
        return describe_image(address, voxels)
    parsed = parse_address(address)
    path = parsed.path
    format = identify(path)
    if isinstance(format, PointFormat | TransformFormat) and parsed.array is None:
        require_no_image_keys(parsed)
    if isinstance(format, PointFormat):
        return _of_points(path)
    if isinstance(format, TransformFormat) and not format.is_run:
        return _of_transform(path, address)
    found = describe_image(address, voxels)
    if not found.run.get("complete"):
        return found
    return _with_verdict(_with_largest(found) if found.run.get("displacement") else found)


describe = info  # its former name


def _of_points(path: str) -> PointsInfo:
    try:
        file = read_points(path)
    except Unreadable as error:
        if transform_formats.by_ending(path):
            load_transform(path)  # which says what else was expected
        raise error from None
    return PointsInfo(path, len(file.points), *_box(file), file.header)


def _box(file: PointFile) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not len(file.points):
        return (), ()
    xyz = file.points[:, ::-1]
    return tuple(xyz.min(axis=0).tolist()), tuple(xyz.max(axis=0).tolist())


def _of_transform(path: str, address: str | Path) -> TransformInfo:
    record = open_transform(address)
    transform = transform_of(record)
    images = [None if inner is None else _target(join(path, inner)) for inner in record.images]
    return TransformInfo(
        path,
        record.format,
        transform.unit,
        tuple(_part(link) for link in transform.links),
        transform.fixed,
        transform.moving,
        (images[0], images[1]),
        record.metadata.get("made"),
        record.metadata.get("certificate"),
    )


def _target(path: str) -> str:
    """The target of a link to an image of a scene."""
    return path if is_remote(path) else os.path.realpath(path)


def _part(link: Link) -> PartInfo:
    affine = tuple(tuple(float(v) for v in row) for row in link.affine)
    return PartInfo(affine) if link.displacement is None else PartInfo(affine, link.displacement_grid, largest(link))


def largest(link: Link) -> float | None:
    """The length of a link's largest displacement, chunk by chunk, world units; None where d is larger than CHEAP bytes."""
    d: da.Array = link.displacement.data
    if 12 * link.displacement_grid.size > CHEAP:
        return None
    return float(da.sqrt((d.astype(np.float32) ** 2).sum(axis=0)).max().compute(scheduler="threads"))


def _with_largest(found: VolumeInfo) -> VolumeInfo:
    (link,) = load_transform(found.name).links
    length = largest(link)
    text = f"largest {length:.4g} {found.unit or '(no unit)'}" if length is not None else "not computed"
    return replace(found, run={**found.run, "displacement": text})


def _with_verdict(found: VolumeInfo) -> VolumeInfo:
    verdict = verdict_of(found.name)
    return found if verdict is None else replace(found, run={**found.run, "verdict": verdict.text()})

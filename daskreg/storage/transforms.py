"""Transforms read from files of any format, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.errors import ConfigError, GridError, OutputError, Unreadable
from daskreg.grid import Grid, unit_name
from daskreg.storage.fs.address import Address, parse_address
from daskreg.storage.fs.atomic import atomic_output
from daskreg.storage.fs.upload import local_place
from daskreg.storage.registry import transform_formats
from daskreg.storage.transform_record import StoredLink, TransformRecord, require_map
from daskreg.storage.zarr.nodes import missing_chunks

OF_IMAGES = ("level", "channel", "time", "spacing", "axes")  # keys of an address that a transform has not
CONTENT = {"affine": "one affine map", "field": "one displacement field", "chain": "a chain of maps"}


def open_transform(address: str | Path) -> TransformRecord:
    """The transform in a file or store of any format, its displacements lazily; '::unit=NAME' says the unit of its world.

    Raises NotFound, Unreadable, IncompleteRun; ConfigError for another key behind the path.
    """
    parsed = parse_address(address)
    path = parsed.path
    require_no_image_keys(parsed)
    with missing_chunks(parsed.missing):
        record = transform_formats.read(path, lambda format: _checked(path, format.open(path), format.name))
    return record if parsed.unit is None else _said_to_be_in(record, parsed.unit)


def require_no_image_keys(address: Address) -> None:
    """Raises ConfigError for an address of a transform that chooses a part of an image, such as a channel."""
    if others := [key for key in OF_IMAGES if getattr(address, key) is not None]:
        which = f"{' and '.join(others)} {'belong' if len(others) > 1 else 'belongs'} to an image"
        raise ConfigError(f"{address.text}: {which}; behind the path of a transform goes unit= alone.")


def _said_to_be_in(record: TransformRecord, unit: str) -> TransformRecord:
    """The same numbers, as those of a unit of length that the file does not state, or states wrongly."""

    def same(grid: Grid | None) -> Grid | None:
        return None if grid is None else replace(grid.to_unit(record.unit), unit=unit)

    links = tuple(replace(link, grid=same(link.grid)) for link in record.links)
    return replace(record, links=links, unit=unit, fixed=same(record.fixed), moving=same(record.moving))


def _checked(path: str, record: TransformRecord, name: str) -> TransformRecord:
    """The record of a file, with the format's name where it has none itself. Raises Unreadable for what is no transform."""
    if not record.links:
        raise Unreadable(f"{path} holds no transform: its list of them is empty.")
    for link in record.links:
        require_map(path, link)
    return replace(record, unit=unit_name(record.unit), format=record.format or name)


def write_links(address: str | Path, links: Sequence[StoredLink], *, overwrite: bool = False) -> None:
    """Write links, in the order of application and in the unit of the format, by the address's ending.

    Raises OutputExists, OutputError (also for what the format does not hold), OutOfSpace, GridError.
    """
    path = parse_address(address).path
    format = transform_formats.to_write(path)
    content = _content(links)
    if format.in_blocks or format.holds not in ("chain", content):
        able = ", ".join(transform_formats.endings(writes=True, holds=content, in_blocks=False))
        raise OutputError(f"{path}: {CONTENT[content]} was given; choose one of the endings {able}.")
    for link in links:
        if link.field is not None and (link.grid is None or tuple(link.field.shape) != (3, *link.grid.shape)):
            expected = None if link.grid is None else (3, *link.grid.shape)
            raise GridError(f"{path}: a displacement of shape {tuple(link.field.shape)} was given; {expected} was expected.")
    with atomic_output(path, overwrite) as temporary, local_place(temporary, needed=not format.remote) as place:
        format.write(place, links)


def read_affine(address: str | Path) -> NDArray[np.float64]:
    """The (4, 4) world affine, fixed to moving points, LPS, order z, y, x, 1, of a file that holds nothing else.

    Raises NotFound, Unreadable.
    """
    total = np.eye(4)
    for link in open_transform(address).links:
        if link.field is not None:
            raise Unreadable(f"{address} holds a displacement field; an affine map was expected.")
        total = link.affine @ total
    return total


def write_affine(address: str | Path, matrix: ArrayLike, *, overwrite: bool = False) -> None:
    """Write a (4, 4) world affine, fixed to moving points, LPS, order z, y, x, 1; ITK's formats want it in millimetres.

    Raises OutputExists, OutputError, OutOfSpace.
    """
    write_links(address, [StoredLink(np.asarray(matrix, float))], overwrite=overwrite)


def _content(links: Sequence[StoredLink]) -> Literal["affine", "field", "chain"]:
    """What a format must hold to store the links."""
    if len(links) != 1:
        return "chain"
    (link,) = links
    if link.field is None:
        return "affine"
    return "field" if np.array_equal(link.affine, np.eye(4)) else "chain"

"""Write transforms, chunk by chunk; an output is complete or absent."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from daskreg.errors import OutputError
from daskreg.grid import Region
from daskreg.lazy.blocks import EDGE, compute_tasks
from daskreg.lazy.transform import Transform
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.atomic import atomic_output, require_distinct, require_writable
from daskreg.storage.fs.lock import OutputLock
from daskreg.storage.registry import transform_formats
from daskreg.storage.runs.scenes import LinkedImage
from daskreg.storage.runs.transforms import TransformStore
from daskreg.transforms.link import Link

Fill = Callable[[Link, Region], tuple[Any, Any]]  # a box of a link's d, and a record of it


def require_output(output: str | Path, overwrite: bool, *sources: Any) -> None:
    """Raises at once what ``write_transform`` would raise after hours: OutputExists; OutputError for ending, folder or source."""
    path = parse_address(output).path
    if not any(f.in_blocks for f in transform_formats.by_ending(path)):
        kept, others = (" or ".join(transform_formats.endings(writes=True, in_blocks=k)) for k in (True, False))
        raise OutputError(
            f"{path}: a transform is kept as {kept}; choose that ending, and 'daskreg export' makes {others} of it."
        )
    require_distinct(output, *sources)
    require_writable(path, overwrite)


def write_transform(
    transform: Transform,
    output: str | Path,
    *,
    overwrite: bool = False,
    fill: Fill | None = None,
    describe: Callable[[TransformStore, list[Any]], Mapping[str, Any]] | None = None,
    backward: Transform | None = None,
    made: Mapping[str, Any] | None = None,
    images: tuple[LinkedImage | None, LinkedImage | None] = (None, None),
    lock: OutputLock | None = None,
) -> None:
    """Write a transform as an OME-NGFF 0.6 store, a task a block of each displacement; the output appears when it is complete.

    fill: computes a block (by default reads it) and a record of it;  describe: given the store without its metadata and the
    records of all blocks, returns further metadata;  backward: the inverse, which makes of both a bijection;
    made: its history, see ``history_of``;  images: archives to link below it, the two ends of its scene;
    lock: of the output, where the caller holds it already.
    Raises OutputExists, OutputBusy, OutputError, OutOfSpace.
    """
    require_output(output, overwrite)
    path = parse_address(output).path
    with atomic_output(path, overwrite, lock) as unfinished:
        back = () if backward is None else backward.links
        every = (*transform.links, *back)
        grids = [None if link.displacement is None else link.displacement_grid for link in every]
        store = TransformStore.create(unfinished, grids)
        found = _filled(transform.links, 0, store, fill or _read)
        _filled(back, len(transform.links), store, _read)
        metadata = {**({} if made is None else {"made": made}), **({} if describe is None else describe(store, found))}
        links = [(link.affine, grid) for link, grid in zip(every, grids, strict=True)]
        store.finish(links, transform.unit, transform.fixed, transform.moving, metadata, len(back), images, path)


def history_of(command: str, source: Any, **more: Any) -> dict[str, Any]:
    """The history of a transform, stored with it: command, source, version and time. source: an address, or None."""
    path = None if source is None else parse_address(source).path
    address = path if path is None or is_remote(path) else os.path.abspath(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "of": address, "version": version("daskreg"), "at": now, **more}


def _filled(links: Sequence[Link], first: int, store: TransformStore, fill: Fill) -> list[Any]:
    """Write all blocks of all displacements; their records. first: number of the first link in the store."""
    return compute_tasks(
        (partial(_write, store, fill, number, link), box)
        for number, link in enumerate(links, first)
        if link.displacement is not None
        for box in link.displacement_grid.region.split(EDGE)
    )


def _write(store: TransformStore, fill: Fill, number: int, link: Link, box: Region) -> Any:
    d, record = fill(link, box)
    store.write(number, link.displacement_grid, box, d)
    return record


def _read(link: Link, box: Region) -> tuple[Any, None]:
    return link.read(box), None

"""Read transforms: runs, OME-NGFF 0.6 scenes, and files of ITK and ANTs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from daskreg.arguments import checked_arguments
from daskreg.errors import ConfigError
from daskreg.lazy.blocks import Reader
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore
from daskreg.storage.formats.run import run_record
from daskreg.storage.runs.transforms import TransformStore, reopened
from daskreg.storage.transform_record import StoredLink, TransformRecord
from daskreg.storage.transforms import open_transform
from daskreg.transforms.chain import merge_affines
from daskreg.transforms.link import Link


class FinishedRun(Protocol):
    """What keeps a run open, as the ``Result`` of ``register`` does."""

    @property
    def store(self) -> RunStore:
        """The run."""


TransformLike = str | Path | RunStore | FinishedRun | Transform


@checked_arguments()
def load_transform(source: TransformLike) -> Transform:
    """Open a transform from fixed to moving points; its displacements are lazy.

    source: the Result of ``register``, a RUN.zarr, a transform.zarr or any OME-NGFF 0.6 scene, or a displacement field, affine
    map or composite of ITK, in millimetres: any file that ``daskreg.storage.formats`` knows as a transform. ``::unit=mm`` behind
    an address says the unit of one that states none, as the run of two arrays. A Transform is returned as it is.
    Raises NotFound, Unreadable and IncompleteRun, ConfigError for what is no address and no run.
    """
    if isinstance(source, Transform):
        return source
    found = run_in(source)
    if not isinstance(found, RunStore):
        if found is None:
            raise ConfigError("no transform was given; an address, a Result or a Transform was expected.")
        require_address(found)
    return transform_of(run_record(found) if isinstance(found, RunStore) else open_transform(found))


def require_address(found: Any) -> None:
    """Raises ConfigError for what is given as a transform, and is no address; None stands for one in memory."""
    if found is not None and not isinstance(found, str | Path):
        affine = "; an affine map, (4, 4), is daskreg.Transform.of(affine)" if getattr(found, "shape", ()) == (4, 4) else ""
        what = f"a transform was given as {type(found).__name__}"
        raise ConfigError(f"{what}; an address, a Result or a Transform was expected{affine}.")


def transform_of(record: TransformRecord) -> Transform:
    """The transform that a file or store holds."""
    return Transform(merge_affines(_links(record.links)), record.unit, record.fixed, record.moving)


def path_of(source: TransformLike) -> str | Path | None:
    """The address of a transform; None for one in memory."""
    found = run_in(source)
    if isinstance(found, RunStore):
        return found.path
    return None if isinstance(found, Transform) else cast("str | Path", found)


def run_in(source: Any) -> Any:
    """The run of a Result; anything else as it is."""
    run = getattr(source, "store", None)
    return run if isinstance(run, RunStore) else source


def _links(stored: Iterable[StoredLink]) -> list[Link]:
    return [Link(s.affine, s.grid, None if s.field is None else Reader(s.field)) for s in stored]


def stored_links(store: TransformStore, links: Sequence[Link]) -> list[Link]:
    """The same links with their fields read from a store that is still being written."""
    return [
        link
        if link.displacement is None
        else Link(np.asarray(link.affine), link.grid, Reader(reopened(store, k, link.displacement_grid)))
        for k, link in enumerate(links)
    ]

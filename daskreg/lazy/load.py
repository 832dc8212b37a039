"""Transforms from files: runs, NGFF 0.6 scenes, and what ITK and ANTs write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from daskreg.errors import Unreadable
from daskreg.lazy.blocks import Reader
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, read_affine
from daskreg.storage.formats.itk_composite import is_composite, read_composite
from daskreg.storage.formats.itk_linear import LINEAR_ENDINGS
from daskreg.storage.formats.nifti import is_nifti
from daskreg.storage.formats.nifti_field import read_displacement_nifti
from daskreg.storage.fs.address import parse_address
from daskreg.storage.runs.run import DISPLACEMENT, is_run
from daskreg.storage.runs.transforms import StoredLink, TransformStore, read_transform, reopened
from daskreg.transforms.chain import merge_affines
from daskreg.transforms.link import Link


def load_transform(source: str | Path | RunStore) -> Transform:
    """A transform, fixed to moving points, its displacements lazily.

    source: a RUN.zarr, a transform.zarr or any OME-NGFF 0.6 scene, an ITK displacement field (.nii, .nii.gz), an ITK affine
    (.mat, .tfm, .txt) or an ITK composite (.h5). What ITK writes is in millimetres.
    Raises NotFound, Unreadable and IncompleteRun.
    """
    if isinstance(source, RunStore):
        return _of_run(source)
    path = parse_address(source).path
    if is_nifti(path):
        grid, field = read_displacement_nifti(path)
        return Transform.of(None, grid, Reader(field))
    if is_composite(path):
        return _of_links(read_composite(path), "millimeter")
    if path.lower().endswith(LINEAR_ENDINGS):
        return Transform.of(read_affine(path), unit="millimeter")
    if os.path.isfile(path) and not path.lower().endswith(".zip"):
        raise Unreadable(f"{path} is no transform; .zarr, .nii.gz, .h5, .mat, .tfm or .txt was expected.")
    if is_run(path):
        return _of_run(RunStore.open(path))
    found = read_transform(path)
    return Transform(merge_affines(_links(found.links)), found.unit, found.fixed, found.moving)


def place_of(source: str | Path | RunStore | Transform) -> str | Path | None:
    """Where a transform is, None for one in memory."""
    return source.path if isinstance(source, RunStore) else None if isinstance(source, Transform) else source


def _of_run(store: RunStore) -> Transform:
    displacement = Reader(store.displacement()) if store.has(DISPLACEMENT) else None
    return Transform.of(store.affine, store.fixed_grid, displacement, store.moving_grid)


def _of_links(links: Sequence[StoredLink], unit: str | None) -> Transform:
    first = next((link.grid for link in links if link.grid is not None), None)
    return Transform(merge_affines(_links(links)), unit, first)


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

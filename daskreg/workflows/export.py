"""``daskreg export``: the transform of a run as ITK, ANTs and SimpleITK read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, NotFound, OutputError
from daskreg.grid import Grid, Region
from daskreg.storage import RunStore, write_affine, write_displacement_nifti
from daskreg.storage.address import parse_address
from daskreg.storage.atomic import require_apart
from daskreg.storage.itk import LINEAR_ENDINGS
from daskreg.storage.itk_composite import is_composite, write_composite
from daskreg.storage.nifti import is_nifti
from daskreg.transforms.composite import Link
from daskreg.workflows.blocks import block_of, by_block
from daskreg.workflows.keep import write_transform
from daskreg.workflows.load import load_transform, place_of
from daskreg.workflows.resample import known_word
from daskreg.workflows.transform import Transform

Part = Literal["total", "warp", "affine"]
PARTS = ("total", "warp", "affine")


def export(run: str | Path | RunStore | Transform, output: str | Path, *, part: Part = "total", overwrite: bool = False) -> None:
    """Write ``phi(x) - x`` (total) or d (warp) as a displacement field, or W (affine) as an ITK affine, in millimetres.

    The whole also goes, link by link, into an ITK composite (.h5) or an OME-NGFF 0.6 scene (.zarr), which keeps its unit.

    Total alone, or the affine applied after the warp (for ANTs: ``-t warp.nii.gz -t affine.mat``), takes fixed to moving points,
    as resampling wants it. Raises ConfigError, NotFound (no such part), OutputError when the ending does not suit the part.
    """
    known_word("part", part, PARTS)
    require_apart(output, place_of(run))
    path = parse_address(output).path
    if part != "total" or not (is_composite(path) or path.lower().endswith(".zarr")):
        _require_ending(path, part)
    transform = run if isinstance(run, Transform) else load_transform(run)
    if part == "total" and path.lower().endswith(".zarr"):
        write_transform(transform, output, overwrite=overwrite)
        return
    if part == "total" and is_composite(path):
        write_composite(output, metric_links(transform), overwrite=overwrite)
        return
    if part == "affine":
        write_affine(output, metric_affine(transform), overwrite=overwrite)
        return
    chosen = transform if part == "total" else warp_alone(transform)
    write_displacement_nifti(output, displacement_field(chosen), chosen.grid.to_unit(transform.unit), overwrite=overwrite)


def warp_alone(transform: Transform) -> Transform:
    """A transform that begins with its only displacement, without the affine behind it. Raises NotFound and ConfigError."""
    if transform.is_affine:
        raise NotFound("the transform has no displacement, its stages are linear; export its affine (--part affine) instead.")
    first, *others = transform.links
    if first.displacement is None or any(link.displacement is not None for link in others):
        raise ConfigError("the transform is a chain in which no one displacement comes first; export the whole (--part total).")
    return replace(transform, links=(Link(np.eye(4), first.grid, first.displacement),))


def metric_links(transform: Transform) -> list[tuple[NDArray[np.float64], Grid | None, Any]]:
    """W, grid and d of every link in millimetres, for a file of ITK's."""
    metric = transform if transform.unit is None else transform.to_unit("millimeter")
    return [(k.affine, None if k.displacement is None else k.place, k.displacement) for k in metric.links]


def metric_affine(transform: Transform) -> NDArray[np.float64]:
    """W with its translation in millimetres, as exported images are; (4, 4), order z, y, x, 1."""
    return transform.affine if transform.unit is None else transform.to_unit("millimeter").affine


def displacement_field(transform: Transform) -> da.Array:
    """``phi(x) - x``, lazily (3, Z, Y, X) float32: in the transform's unit on the fixed grid, components z, y, x."""
    shape = transform.grid.shape
    return by_block(_Field(transform), (3, *shape), np.dtype(np.float32), (1, *block_of(shape, 4)))


class _Field:
    """One component at a time: a NIfTI file holds one after the other."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, box: Region, components: range) -> NDArray[np.float32]:
        return self.transform.field(box, components)


def _require_ending(path: str, part: Part) -> None:
    if part == "affine" and not path.lower().endswith(LINEAR_ENDINGS):
        raise OutputError(f"{path}: an affine is written as .mat, .tfm or .txt; choose one of these endings, or another --part.")
    if part != "affine" and not is_nifti(path):
        raise OutputError(
            f"{path}: part {part!r} is a displacement field, written as .nii or .nii.gz (the total also as .h5 or .zarr); "
            "choose such an ending, or --part affine."
        )

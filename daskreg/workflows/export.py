"""``daskreg export``: the transform of a run as ITK, ANTs and SimpleITK read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from daskreg.errors import NotFound, OutputError
from daskreg.grid import Region
from daskreg.storage import RunStore, write_affine, write_displacement_nifti
from daskreg.storage.address import parse_address
from daskreg.storage.nifti import is_nifti
from daskreg.storage.write import millimetres
from daskreg.transforms.composite import Transform
from daskreg.workflows.apply import block_of, by_block, known_word, load_transform

Part = Literal["total", "warp", "affine"]
PARTS = ("total", "warp", "affine")
LINEAR = (".mat", ".tfm", ".txt")


def export(run: str | Path | RunStore, output: str | Path, *, part: Part = "total", overwrite: bool = False) -> None:
    """Write ``phi(x) - x`` (total) or d (warp) as a displacement field, or W (affine) as an ITK affine, in millimetres.

    Total alone, or the affine applied after the warp (for ANTs: ``-t warp.nii.gz -t affine.mat``), takes fixed to moving points,
    as resampling wants it. Raises ConfigError, NotFound (no such part), OutputError when the ending does not suit the part.
    """
    known_word("part", part, PARTS)
    _require_ending(str(output), part)
    transform = load_transform(run)
    if part == "affine":
        write_affine(output, metric_affine(transform), overwrite=overwrite)
        return
    if part == "warp" and transform.displacement is None:
        raise NotFound("the run has no displacement, its stages are linear; export its affine (--part affine) instead.")
    write_displacement_nifti(output, displacement_field(transform, part), transform.grid, overwrite=overwrite)


def metric_affine(transform: Transform) -> NDArray[np.float64]:
    """W with its translation in millimetres, as exported images are; (4, 4), order z, y, x, 1."""
    matrix = transform.affine.copy()
    matrix[:3, 3] *= millimetres(transform.grid)
    return matrix


def displacement_field(transform: Transform, part: Part = "total") -> da.Array:
    """``phi(x) - x``, or d alone, lazily (3, Z, Y, X) float32: world units of the fixed grid, components z, y, x."""
    affine = transform.affine if part == "total" else np.eye(4)
    field = _Field(Transform(affine, transform.grid, transform.displacement))
    shape = transform.grid.shape
    return by_block(field, (3, *shape), np.dtype(np.float32), (1, *block_of(shape, 4)))


class _Field:
    """One component of ``W(x + d) - x`` at a time: a file holds one after the other."""

    def __init__(self, transform: Transform) -> None:
        self.transform, self.grid = transform, transform.grid
        self.affine = (transform.affine - np.eye(4)) @ transform.grid.index_to_world  # (W - 1) x of a voxel index

    def __call__(self, box: Region, component: Any) -> NDArray[np.float32]:
        """Component ``component`` in a block, (1, Z, Y, X); summed in float64, for origins can be far."""
        a, row = self.affine[component], self.transform.affine[component, :3]
        z, y, x = (a[c] * np.arange(box.start[c], box.stop[c]) for c in range(3))
        total = z[:, None, None] + y[:, None] + (x + a[3])
        if self.transform.displacement is not None:
            d = self.transform.displacement[(slice(None), *box.slices)]
            for c in np.flatnonzero(row):
                total += row[c] * d[c]
        return np.asarray(total[None], np.float32)


def _require_ending(output: str, part: Part) -> None:
    path = parse_address(output).path
    if part == "affine" and not path.lower().endswith(LINEAR):
        raise OutputError(f"{path}: an affine is written as .mat, .tfm or .txt; choose one of these endings, or another --part.")
    if part != "affine" and not is_nifti(path):
        raise OutputError(
            f"{path}: part {part!r} is a displacement field, written as .nii or .nii.gz; choose that ending, or --part affine."
        )

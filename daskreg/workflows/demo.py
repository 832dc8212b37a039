"""``daskreg demo``: a bundled real pair, from nothing to a report."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daskreg.arguments import checked_arguments
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.grid import Grid
from daskreg.reporting.follow import ProgressLike
from daskreg.storage import Volume, is_remote, open_volume, write_image
from daskreg.workflows.register import register
from daskreg.workflows.report import report
from daskreg.workflows.result import Result


@checked_arguments()
def demo_pair(millimetres: int = 2) -> tuple[str, str]:
    """Paths of the bundled fixed (MNI152 2009c) and moving (Colin27) heads, at 2 or 3 mm. Raises ConfigError for another size."""
    if millimetres not in (2, 3):
        raise ConfigError(f"millimetres is {millimetres!r}; the bundled heads are at 2 and at 3 mm.")
    data = files("daskreg") / "data"
    return str(data / f"quickstart_mni2009c_T1_{millimetres}mm.nii.gz"), str(
        data / f"quickstart_colin27_T1_{millimetres}mm.nii.gz"
    )


def write_fine_pair(out: Path) -> tuple[str, str]:
    """Both heads at 1 mm, interpolated, in files of a folder: what is read a few planes at a time is not held in memory."""
    paths = str(out / "fixed.nii"), str(out / "moving.nii")
    for path, coarse in zip(paths, demo_pair(), strict=True):
        voxels, grid = _halved(open_volume(coarse))
        write_image(path, voxels, grid, overwrite=True)
        del voxels
    from daskreg.engine.memory import trim

    trim()
    return paths


def _halved(volume: Volume) -> tuple[NDArray[np.float32], Grid]:
    """Voxels of half the size, by linear interpolation, and their grid."""
    voxels, grid = np.asarray(volume.read(), np.float32), volume.grid
    for axis in range(3):
        padded = np.pad(voxels, [(int(a == axis), int(a == axis)) for a in range(3)], mode="edge")
        before, behind = (np.delete(padded, ends, axis) for ends in ([-2, -1], [0, 1]))
        halves = np.stack([(3 * voxels + side) / 4 for side in (before, behind)], axis + 1)
        voxels = halves.reshape([n * (1 + (a == axis)) for a, n in enumerate(voxels.shape)])
    matrix = grid.index_to_world.copy()
    matrix[:3, 3] = grid.to_world(np.full(3, -0.25))
    matrix[:3, :3] /= 2
    return voxels, Grid.from_matrix(voxels.shape, matrix, grid.unit, oriented=grid.oriented)


@checked_arguments()
def demo(
    out: str | Path = "daskreg_demo",
    *,
    memory: int | str | None = None,
    overwrite: bool = False,
    progress: ProgressLike = None,
) -> tuple[Result, Path]:
    """Register the pair into ``out/run.zarr`` and write ``out/report.html``.

    memory: bytes, or text such as "800MB", within which the pair is registered at 1 mm, where it takes 1.0 GB, and so with fields
    on disk; None: at 2 mm, without a limit. Raises OutputExists when either is there and ``overwrite`` was not asked for, and
    PlanTooLarge.
    """
    if not isinstance(out, str | Path):
        raise ConfigError(f"out is {out!r}; the path of a folder was expected.")
    if is_remote(str(out)):
        raise OutputError(f"{out} is a URL; the demonstration writes to a local folder: choose another --out.")
    out = Path(out)
    page = out / "report.html"
    if page.exists() and not overwrite:
        raise OutputExists(f"{page} exists already; choose another --out, or replace it with --overwrite.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error.strerror}; choose another --out.") from None
    pair = demo_pair() if memory is None else write_fine_pair(out)
    result = register(*pair, "brain", output=out / "run.zarr", overwrite=overwrite, memory=memory, progress=progress)
    report(result.path, page, overwrite=overwrite)
    return result, page.absolute()

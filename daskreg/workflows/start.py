"""The transform that a registration starts from, where it is given as an array, a tensor or a Transform instead of an address.

It is written beside the run, so that an interrupted run can be resumed from it.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ArrayError, ConfigError
from daskreg.lazy.load import load_transform, run_in
from daskreg.lazy.save import history_of, write_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, open_volume
from daskreg.workflows.inputs import ImageLike, Spacing, spacing_for
from daskreg.workflows.temporary import is_temporary

StartLike = str | PathLike[str] | Transform | Any  # an address, or a displacement as an array or tensor


def stored_start(
    start: StartLike | None, fixed: ImageLike | None, moving: ImageLike | None, spacing: Spacing, run: Path, *, resume: bool
) -> str | Path | None:
    """The address of a transform: as given, or of RUN.start.zarr beside the run, where it is written.

    A displacement is (3, Z, Y, X) or (1, 3, Z, Y, X), real numbers in voxels, components z, y, x: the voxel x of the fixed image
    lies at the voxel x + u(x) of the moving one, and both have as many voxels. A run that ends with this process is written too.
    Raises ArrayError, ConfigError and what reading the images and writing raise.
    """
    if start is None or (address := path_of_start(start)) is not None:
        return None if start is None else address
    if isinstance(found := run_in(start), RunStore):
        start = load_transform(found)
    path = run.with_name(f"{run.name.removesuffix('.zarr')}.start.zarr")
    if resume and path.exists():
        return path
    write_transform(
        start if isinstance(start, Transform) else _of_displacement(start, fixed, moving, spacing),
        path,
        overwrite=True,
        made=history_of("register", None),
    )
    return path


def path_of_start(start: StartLike | None) -> str | Path | None:
    """The address of what a registration starts from; None for what is in memory, or ends with this process."""
    found = run_in(start)
    if isinstance(found, RunStore):
        return None if is_temporary(found.path) else found.path
    return Path(found) if isinstance(found, PathLike) else found if isinstance(found, str) else None


def _of_displacement(start: Any, fixed: ImageLike | None, moving: ImageLike | None, spacing: Spacing) -> Transform:
    if fixed is None or moving is None:
        raise ConfigError("a displacement to start from needs both images, whose voxels it counts; give FIXED and MOVING.")
    grids = [open_volume(image, spacing=spacing_for(image, spacing)).grid for image in (fixed, moving)]
    u = _voxels(start)
    if not u.shape[1:] == grids[0].shape == grids[1].shape:
        raise ArrayError(
            f"a displacement {u.shape} was given for images {grids[0].shape} and {grids[1].shape}; one in voxels, (3, Z, Y, X), "
            "needs two images of its shape: bring moving onto the grid of fixed first, by "
            "daskreg.apply(daskreg.Transform.of(unit='mm'), moving, like=fixed), or give a daskreg.Transform, "
            "which has a grid and a unit."
        )
    matrix = grids[0].index_to_world
    world = np.einsum("ij,jzyx->izyx", matrix[:3, :3].astype(np.float32), u)
    return Transform.of(grids[1].to_unit(grids[0].unit).index_to_world @ np.linalg.inv(matrix), grids[0], world, grids[1])


def _voxels(start: Any) -> NDArray[np.float32]:
    """A displacement as an array (3, Z, Y, X). Raises ArrayError."""
    array = start.detach().cpu() if hasattr(start, "detach") else start.get() if hasattr(start, "get") else start
    try:
        u = np.asarray(array, np.float32)
    except (TypeError, ValueError):
        raise ArrayError(
            f"the initial transform is a {type(start).__name__}; an address, a Result, a Transform or an array was expected."
        ) from None
    u = u[0] if u.ndim == 5 and u.shape[0] == 1 else u
    if u.ndim != 4 or u.shape[0] != 3 or not np.isfinite(u).all():
        affine = "; an affine map, (4, 4), is given as daskreg.Transform.of(affine)" if u.shape == (4, 4) else ""
        raise ArrayError(f"a displacement {u.shape} was given; (3, Z, Y, X) finite numbers were expected{affine}.")
    return u

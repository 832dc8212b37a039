"""``daskreg points``: map points from one image to the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.arguments import checked_arguments
from daskreg.deprecation import renamed_arguments
from daskreg.errors import require_known
from daskreg.lazy.load import TransformLike, load_transform, path_of
from daskreg.lazy.transform import Transform
from daskreg.storage.fs.atomic import require_distinct, require_writable
from daskreg.storage.point_file import named_points
from daskreg.storage.points import ARRAY, read_points, write_points

log = logging.getLogger("daskreg")
SPACES = ("lps", "ras", "index")
RAS_SIGNS = np.array([1.0, -1.0, -1.0])  # of world components z, y, x: y and x point the other way
BORDER = 0.5 + 1e-6  # voxels: how far an image reaches from the centres of its outermost ones
FAR = 0.01  # of the smallest voxel: a warning is logged where the image of a source is further from its point


@renamed_arguments(run="transform")
@checked_arguments()
def points(
    transform: TransformLike,
    source: str | Path | ArrayLike,
    output: str | Path | None = None,
    *,
    to: str = "moving",
    space: str = "lps",
    order: str | None = None,
    overwrite: bool = False,
) -> NDArray[np.float64]:
    """Map points to the other image; write them to ``output`` if it is given; return them, (N, 3), z, y, x.

    Parameters
    ----------
    transform
        An address, the Result of ``register`` or a Transform.
    source
        An array (N, 3), z, y, x, as what is returned; or a file: a table (.csv, .tsv, .txt) with columns x, y and z among others,
        or three columns without names; an array (N, 3) in a .npy file; a mesh.
    output
        A file of the same kind, or for an array a table or a .npy file; None: nothing is written.
    to
        ``"moving"`` (the points are in the fixed image) or ``"fixed"``.
    space
        ``"lps"`` or ``"ras"``, world coordinates in the unit of the transform, or ``"index"``, voxels of the image that the
        points are in; both in the input and the output.
    order
        ``"xyz"`` or ``"zyx"``, of three columns without names; by default xyz, and zyx of an array. A table of napari, whose
        columns are axis-0, axis-1 and axis-2, is read where it is given: ``"zyx"``, if the image was z, y, x there.
    overwrite
        Replace an existing output.

    Warns of points outside the image that they are in. Raises InputError and OutputError in all their forms.
    """
    require_known("image", to, ("moving", "fixed"))
    require_known("space", space, SPACES)
    if output is not None:
        require_distinct(output, path_of(transform))
        require_writable(str(output), overwrite)
    phi = load_transform(transform)
    file, name = read_points(source, order), str(source) if isinstance(source, str | PathLike) else ARRAY
    sign = RAS_SIGNS if space == "ras" else np.ones(3)
    given_in = "fixed" if to == "moving" else "moving"
    tell_of_outside(phi, file.points * sign, given_in, name, index=space == "index", lines=file.lines)
    if to == "moving":
        moved = phi.fixed_to_moving_points(file.points * sign, "index" if space == "index" else "world") * sign
    else:
        moved = _to_fixed(phi, file.points * sign, space, name, file.lines) * sign
    if output is not None:
        write_points(output, file.with_points(moved), overwrite=overwrite)
    return moved


def tell_of_outside(
    transform: Transform,
    given: NDArray[np.float64],
    image: str,
    name: str,
    *,
    index: bool = False,
    option: str = "--space",
    lines: Sequence[int] = (),
) -> list[str]:
    """Logs a warning, and returns it, of points (N, 3) outside the image that they are in, where the transform knows its grid.

    image: fixed or moving;  name: of their file;  index: they are voxels, not LPS;  option: that states their space;
    lines: of a table, in which they are.
    """
    grid = transform.fixed if image == "fixed" else transform.moving
    if grid is None:
        return []
    voxels = given if index else grid.to_unit(transform.unit).to_index(given)
    outside = np.any((voxels < -BORDER) | (voxels > np.array(grid.shape) - 1 + BORDER), axis=1)
    if not outside.any():
        return []
    unit = "voxels" if index else transform.unit or "none is known"
    found = (
        f"{name}: {outside.sum()} of {len(given)} points lie outside of the {image} image "
        f"({named_points(outside, lines)}); check {option} and the unit ({unit})."
    )
    log.warning("%s", found)
    return [found]


def _to_fixed(
    transform: Transform, given: NDArray[np.float64], space: str, name: str, lines: Sequence[int]
) -> NDArray[np.float64]:
    found, left = transform.sources(given, "index" if space == "index" else "world")
    spacing = 1.0 if transform.fixed is None else min(transform.fixed.to_unit(transform.unit).spacing)
    lost = left > FAR * spacing
    if lost.any():
        log.warning(
            "%s: %d of %d points have no source found within %g voxel (%s; the worst is %.3g off): the transform folds there, or "
            "its displacement ends.",
            name, lost.sum(), len(given), FAR, named_points(lost, lines), left.max(),
        )  # fmt: skip
    return found

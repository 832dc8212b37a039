"""``daskreg points``: map points from one image to the other."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daskreg.deprecation import renamed_arguments
from daskreg.errors import require_known
from daskreg.lazy.load import TransformLike, as_transform, path_of
from daskreg.lazy.transform import Transform
from daskreg.storage.fs.atomic import require_distinct, require_writable
from daskreg.storage.points import read_points, write_points

log = logging.getLogger("daskreg")
SPACES = ("lps", "ras", "index")
RAS_SIGNS = np.array([1.0, -1.0, -1.0])  # of world components z, y, x: y and x point the other way
FAR = 0.01  # of the smallest voxel: a warning is logged where the image of a source is further from its point


@renamed_arguments(run="transform")
def points(
    transform: TransformLike,
    source: str | Path,
    output: str | Path | None = None,
    *,
    to: str = "moving",
    space: str = "lps",
    order: str | None = None,
    overwrite: bool = False,
) -> NDArray[np.float64]:
    """Map the points of a file to the other image; write them to ``output`` if it is given; return them, (N, 3), z, y, x.

    to: moving (the points are in the fixed image) or fixed;  space: lps or ras, world coordinates in the unit of the transform,
    or index, voxels of the image that the points are in, both in the input and the output;  order: see ``read_points``.
    Raises InputError and OutputError in all their forms.
    """
    require_known("image", to, ("moving", "fixed"))
    require_known("space", space, SPACES)
    if output is not None:
        require_distinct(output, path_of(transform))
        require_writable(str(output), overwrite)
    phi = as_transform(transform)
    file = read_points(source, order)
    sign = RAS_SIGNS if space == "ras" else np.ones(3)
    if to == "moving":
        moved = phi.fixed_to_moving_points(file.points * sign, "index" if space == "index" else "world") * sign
    else:
        moved = _to_fixed(phi, file.points * sign, space, str(source)) * sign
    if output is not None:
        write_points(output, file.with_points(moved), overwrite=overwrite)
    return moved


def _to_fixed(transform: Transform, given: NDArray[np.float64], space: str, name: str) -> NDArray[np.float64]:
    found, left = transform.sources(given, "index" if space == "index" else "world")
    spacing = 1.0 if transform.fixed is None else min(transform.fixed.to_unit(transform.unit).spacing)
    lost = left > FAR * spacing
    if lost.any():
        log.warning(
            "%s: %d of %d points have no source found within %g voxel (the worst is %.3g off): the transform folds there, or "
            "its displacement ends.",
            name, lost.sum(), len(given), FAR, left.max(),
        )  # fmt: skip
    return found

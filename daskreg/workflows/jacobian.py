"""``daskreg jacobian``: write the map of Jacobian determinants, and count folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daskreg.arguments import checked_arguments
from daskreg.deprecation import renamed_arguments
from daskreg.errors import require_known
from daskreg.grid import Grid, Region
from daskreg.html import Printable
from daskreg.lazy.blocks import EDGE, Reader, block_of
from daskreg.lazy.load import TransformLike, load_transform, path_of
from daskreg.lazy.transform import Determinant, Transform, jacobian_statistics
from daskreg.reporting.tasks import with_progress
from daskreg.storage import Volume, open_volume, write_image
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.atomic import require_distinct
from daskreg.storage.images import ImageSource
from daskreg.storage.registry import image_formats
from daskreg.transforms.jacobian import JacobianStatistics

JACOBIAN_PARTS = ("total", "warp")


@dataclass(frozen=True, repr=False)
class Folds(Printable):
    """Folds of a Jacobian map. jacobian_statistics: folds and range of the determinant;  voxels: of the map;  part: total
    or warp, whose determinants these are.
    """

    jacobian_statistics: JacobianStatistics
    voxels: int
    part: str = "total"

    @property
    def folded(self) -> int:
        """Voxels whose determinant is at most 0."""
        return round(self.jacobian_statistics.folded_percent * self.voxels / 100)

    def line(self) -> str:
        """Human-readable summary."""
        s = self.jacobian_statistics
        return (
            f"{self.folded} of {self.voxels} voxels fold ({s.folded_percent:.4g} %); Jacobian of the "
            f"{'map' if self.part == 'total' else 'displacement'} {s.smallest:.4g} to {s.largest:.4g}, mean {s.mean:.4g}"
        )

    def lines(self) -> list[str]:
        """See ``line``."""
        return [self.line()]


@renamed_arguments(run="transform")
@checked_arguments()
@with_progress("computing determinants")
def jacobian(
    transform: TransformLike,
    output: str | Path,
    *,
    like: ImageSource | Volume | Grid | None = None,
    part: str = "total",
    overwrite: bool = False,
) -> Folds:
    """Write ``det(D phi)`` on the fixed grid or that of ``like`` to an image file, float32, block by block; count folds.

    part: total, or warp: without the determinants of the affine maps (a mirrored affine makes every total negative).
    Central differences in world units, one-sided at the grid's faces. Raises InputError and OutputError in all their forms.
    """
    require_known("part", part, JACOBIAN_PARTS)
    require_distinct(output, path_of(transform), like)
    phi = load_transform(transform)
    grid = phi.target(like)
    determinants = phi.jacobian(like=grid, whole=part == "total")
    path = parse_address(output).path
    format = image_formats.to_write(path)
    streamed = format.streams_planes
    if streamed:
        determinants = determinants.rechunk(block_of(grid.shape, 4))
    write_image(output, determinants, grid, overwrite=overwrite)
    return Folds(_counted(output, phi, grid, part, streamed or not format.reads_at(path)), grid.size, part)


def _counted(output: str | Path, transform: Transform, grid: Grid, part: str, streamed: bool) -> JacobianStatistics:
    """From what was written; where that is slow to read in boxes, or not read at all, blocks are computed again."""
    source: Determinant | _Written
    if streamed:
        source = Determinant(transform.links, grid.to_unit(transform.unit), part == "total")
    else:
        source = _Written(open_volume(output))
    return jacobian_statistics(source, grid.region, EDGE)


class _Written:
    """Any box of a map of determinants that is stored."""

    def __init__(self, volume: Volume) -> None:
        self.reader = Reader(volume.data)

    def __call__(self, box: Region) -> NDArray[np.float32]:
        return np.asarray(self.reader[box.slices], np.float32)

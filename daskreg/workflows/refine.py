"""``daskreg refine``: register a region of the fixed image again, at its own resolution, and blend the correction in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from daskreg.arguments import checked_arguments
from daskreg.config import Config, Deformable
from daskreg.deferred import DeferredModule
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ConfigError, require_number
from daskreg.grid import Grid, Region
from daskreg.html import Printable
from daskreg.lazy.blocks import EDGE, Reader
from daskreg.lazy.load import TransformLike, load_transform, path_of
from daskreg.lazy.resample import require_not_exchanged, warn_of_other_grid
from daskreg.lazy.save import history_of, require_output, write_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, Volume, open_volume
from daskreg.storage.digest import difference, digest
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.lock import only_writer
from daskreg.storage.images import ImageSource
from daskreg.transforms.jacobian import BlockStatistics, JacobianStatistics
from daskreg.workflows.recorded import run_of
from daskreg.workflows.register import register
from daskreg.workflows.resources import ResourceKeywords
from daskreg.workflows.result import Result

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

SPAN = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, repr=False)
class Refined(Printable):
    """A refined transform, and its accuracy in the region.

    transform: the chain, correction first;  before, after: correlation and mutual information;  jacobian_statistics: of the chain
    """

    transform: Transform
    before: dict[str, float]
    after: dict[str, float]
    jacobian_statistics: JacobianStatistics

    def line(self) -> str:
        """Human-readable summary."""
        b, a, s = self.before, self.after, self.jacobian_statistics
        return f"correlation in the part {b['ncc']:.4f} -> {a['ncc']:.4f}; determinant {s.smallest:.3g} to {s.largest:.3g}"

    def lines(self) -> list[str]:
        """See ``line``."""
        return [self.line()]


@renamed_arguments(run="transform")
@checked_arguments(ResourceKeywords.__annotations__)
def refine(
    transform: TransformLike,
    fixed: ImageSource | Volume,
    moving: ImageSource | Volume,
    output: str | Path,
    region: Region | str,
    *,
    stages: Sequence[Deformable] = (Deformable(scales=(2, 1), iterations=(60, 40)),),
    blend: int = 8,
    overwrite: bool = False,
    **resources: Unpack[ResourceKeywords],
) -> Refined:
    """Improve a transform in a region of the fixed image; outside of it no bit changes.

    The moving image is resampled through the transform and registered again in the region. The correction c that this finds fades
    to 0 towards the region's faces: phi_new(x) = phi(x + c(x)), written as a chain of two fields and sampled as one.

    fixed: of any resolution, a finer level's too;  region: voxels of ``fixed``, or text (z, y, x) as in 10:90,0:64,32:96;
    stages: deformable ones;  blend: voxels along each face over which the correction fades;  resources: as for ``register``.
    Raises InputError and OutputError in all their forms.
    """
    require_number("blend", blend, 1, 4096, whole=True)
    require_output(output, overwrite, path_of(transform), fixed, moving)
    with only_writer(parse_address(output).path) as lock:
        chain, result, made = _refined(transform, fixed, moving, region, stages, blend, resources)
        write_transform(chain, output, overwrite=overwrite, made=made, lock=lock)
    back, metrics = load_transform(output), result.report["metrics"]
    return Refined(back, metrics["before"], metrics["after"], _jacobian_statistics(back, result.store.fixed_grid))


def _refined(
    transform: TransformLike,
    fixed: ImageSource | Volume,
    moving: ImageSource | Volume,
    region: Region | str,
    stages: Sequence[Deformable],
    blend: int,
    resources: ResourceKeywords,
) -> tuple[Transform, Result, dict[str, Any]]:
    """The chain with the correction, the registration that found it, and the chain's history."""
    phi = load_transform(transform)
    target, source = open_volume(fixed), open_volume(moving)
    require_not_exchanged(target, source, phi.grids)
    _require_images_of_run(run_of(transform), fixed, moving)
    warn_of_other_grid(target, "fixed", phi.grids)
    warn_of_other_grid(source, "moving", phi.grids)
    box = parse_region(region) if isinstance(region, str) else region
    if not isinstance(box, Region):
        raise ConfigError(f"region is {region!r}; a daskreg.Region, or text (z, y, x) as in 10:90,0:64,32:96, was expected.")
    _require_part(box, target.grid, blend, stages)
    part = replace(target, data=target.data[box.slices], grid=target.grid.crop(box), levels=(), format="array")
    around = _grown(part.grid, blend)
    smooth = replace(source, data=source.data.astype(np.float32))
    before = Volume(phi.apply(smooth, like=around, device="cpu"), around, f"{source.name}, through the transform")
    result = register(part, before, Config(stages=tuple(stages)), **resources)
    unit = phi.unit if phi.unit is not None else part.grid.unit
    faded = Reader(result.displacement * window(part.grid.shape, blend))
    correction = Transform.of(None, part.grid, faded).to_unit(unit)
    chain = Transform((*correction.links, *phi.links), unit, phi.fixed or target.grid, phi.moving or source.grid)
    where = [list(box.start), list(box.stop)]
    return chain, result, history_of("refine", path_of(transform), fixed=target.name, moving=source.name, region=where)


def _require_images_of_run(run: RunStore | None, fixed: ImageSource | Volume, moving: ImageSource | Volume) -> None:
    """Raises ConfigError for the images of a run where they were exchanged, which on one grid their content alone tells."""
    known = {} if run is None else run.recipe.get("inputs") or {}
    its_fixed, its_moving = known.get("fixed"), known.get("moving")
    if run is None or not its_fixed or not its_moving or difference(its_fixed, its_moving) is None:
        return
    pairs = (its_moving, digest(fixed)), (its_fixed, digest(moving))
    if all(found is not None and difference(its, found) is None for its, found in pairs):
        raise ConfigError(
            f"the moving image of {run.name} was given as the fixed one, and its fixed image as the moving one: they were "
            "exchanged. Give each for the other."
        )


def parse_region(text: str) -> Region:
    """``10:90,0:64,32:96``: first voxel and last + 1 along z, y, x. Raises ConfigError."""
    spans = [SPAN.fullmatch(part.strip()) for part in text.split(",")]
    if len(spans) != 3 or not all(spans):
        raise ConfigError(f"region {text!r}: three spans of voxels (z, y, x) were expected, as in 10:90,0:64,32:96.")
    ends = [(int(s[1]), int(s[2])) for s in spans if s]
    for axis, (first, stop) in zip("zyx", ends, strict=True):
        if first >= stop:
            raise ConfigError(
                f"region {text!r}: along {axis} it begins at {first} and ends before {stop}; the smaller one is first."
            )
    return Region.of((a for a, _ in ends), (b for _, b in ends))


def window(shape: tuple[int, int, int], blend: int) -> da.Array:
    """From 0 on the faces to 1 at ``blend`` voxels from them, by a twice differentiable step, (1, Z, Y, X) float32, lazily."""
    edges = []
    for n in shape:
        t = np.minimum(np.minimum(np.arange(n), np.arange(n)[::-1]) / blend, 1)
        edges.append(da.from_array((t**3 * (t * (6 * t - 15) + 10)).astype(np.float32), chunks=EDGE))
    z, y, x = edges
    product: da.Array = z[None, :, None, None] * y[None, None, :, None] * x[None, None, None, :]
    return product


def _grown(grid: Grid, margin: int) -> Grid:
    box = grid.region.grow(margin)
    return replace(grid, shape=box.shape, origin=tuple(grid.to_world(box.start)))


def _require_part(box: Region, grid: Grid, blend: int, stages: Sequence[Any]) -> None:
    if box & grid.region != box or not box.size:
        raise ConfigError(
            f"region {box.start} to {box.stop} is not inside the fixed image, whose voxels are {grid.shape} (z, y, x)."
        )
    if min(box.shape) < 2 * blend + 2:
        raise ConfigError(
            f"a region of {box.shape} voxels has no middle once {blend} voxels fade along each face; at least {2 * blend + 2} "
            "an axis are needed: enlarge it, or blend less."
        )
    if not isinstance(stages, list | tuple) or not stages or not all(isinstance(s, Deformable) for s in stages):
        raise ConfigError("a part is refined by deformable stages only: an affine map would not fade to its faces.")


def _jacobian_statistics(transform: Transform, grid: Grid) -> JacobianStatistics:
    determinant = transform.jacobian(like=grid, whole=False)
    return JacobianStatistics.merge([BlockStatistics.of(determinant[box.slices].compute()) for box in grid.region.split(EDGE)])

"""``daskreg export``: a transform as ITK, ANTs and SimpleITK read it, or as an OME-NGFF 0.6 scene."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from daskreg.arguments import checked_arguments
from daskreg.deferred import DeferredModule
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ConfigError, GridError, NotFound, OutputError, require_known
from daskreg.grid import Region
from daskreg.lazy.blocks import block_of, by_block
from daskreg.lazy.load import TransformLike, load_transform, path_of
from daskreg.lazy.save import history_of, write_transform
from daskreg.lazy.transform import Transform
from daskreg.reporting.tasks import with_progress
from daskreg.storage import RunStore, is_remote
from daskreg.storage.format import TransformFormat
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.atomic import require_distinct
from daskreg.storage.recorded_images import recorded_image
from daskreg.storage.registry import transform_formats
from daskreg.storage.runs.run import is_run
from daskreg.storage.runs.scenes import LinkedImage, find_image
from daskreg.storage.transform_record import StoredLink
from daskreg.storage.transforms import write_links
from daskreg.transforms.link import Link

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

log = logging.getLogger("daskreg")
Part = Literal["total", "warp", "affine"]
PARTS = ("total", "warp", "affine")


@renamed_arguments(run="transform")
@checked_arguments()
@with_progress("exporting")
def export(
    transform: TransformLike,
    output: str | Path,
    *,
    part: Part = "total",
    images: bool = False,
    fixed: str | Path | None = None,
    moving: str | Path | None = None,
    one_field: bool = False,
    overwrite: bool = False,
) -> str | Path:
    """Write ``phi(x) - x`` (total) or d (warp) as a displacement field, or W (affine) as an ITK affine, in millimetres.

    Returns what was written: a path, or a URL as it was given.

    The whole also goes, link by link, into an ITK composite (.h5) or an OME-NGFF 0.6 scene (.zarr), which keeps its unit.

    A transform without displacement goes into a file of an affine as a whole too.

    Total alone, or the affine applied after the warp (for ANTs: ``-t warp.nii.gz -t affine.mat``), takes fixed to moving points,
    as resampling wants it.

    images: link the archives that a run was made from below the scene, untouched, so that it goes from the one to the other;
    fixed, moving: other archives for its two ends. OME-Zarr of this file system, and a .zarr as output;
    one_field: all of the transform in one field on the fixed grid, in a .zarr too, for readers that follow no chains.
    Raises ConfigError, NotFound (no such part), OutputError when the ending does not suit the part.
    """
    require_known("part", part, PARTS)
    require_distinct(output, path_of(transform), fixed, moving)
    path = parse_address(output).path
    phi = load_transform(transform)
    format = _format_for(path, part, phi)
    ends = _archives(transform, images, fixed, moving, path)
    if phi.unit is None and not format.in_blocks:
        log.warning(
            "the transform states no unit of length: readers of %s take its lengths for millimetres; where they are others, say "
            "so behind its path, as in 'RUN.zarr::unit=um'", path,
        )  # fmt: skip
    if part == "total" and phi.fixed is None and (one_field or format.holds == "field"):
        chains = " or ".join(transform_formats.endings(writes=True, holds="chain"))
        raise GridError(
            f"{path}: the transform names no fixed grid for a field to be on, a bare affine has none; "
            f"export its affine (--part affine), or all of it as {chains}."
        )
    if format.in_blocks:
        whole = flattened(phi) if one_field else phi
        write_transform(whole, output, overwrite=overwrite, made=history_of("export", path_of(transform)), images=ends)
    else:
        write_links(output, _links(phi, part, format), overwrite=overwrite)
    return str(output) if is_remote(str(output)) else Path(output)


def _format_for(path: str, part: Part, transform: Transform) -> TransformFormat:
    """The format of the output: an affine is all of what has no displacement. Raises OutputError where it holds another part."""
    fits = {"affine": ("affine",), "warp": ("field",), "total": ("field", "chain", *["affine"] * transform.is_affine)}[part]
    for format in transform_formats.by_ending(path):
        if format.writes and format.holds in fits:
            return format
    affines, fields, chains = (", ".join(transform_formats.endings(writes=True, holds=h)) for h in ("affine", "field", "chain"))
    if part == "affine":
        raise OutputError(f"{path}: an affine is written as {affines}; choose one of these endings, or another --part.")
    if part == "total" and transform.is_affine:
        raise OutputError(
            f"{path}: a transform without displacement is written as {affines}, {chains} or {fields}; choose such an ending."
        )
    raise OutputError(
        f"{path}: part {part!r} is a displacement field, written as {fields} (the total also as {chains}); "
        "choose such an ending, or --part affine."
    )


def _links(transform: Transform, part: Part, format: TransformFormat) -> list[StoredLink]:
    """What is written: an affine map, a displacement field, or all links, in the unit of the format."""
    if format.holds == "field":
        chosen = transform if part == "total" else warp_alone(transform)
        return [StoredLink(np.eye(4), chosen.grid.to_unit(transform.unit), displacement_field(chosen))]
    metric = transform if transform.unit is None or format.unit is None else transform.to_unit(format.unit)
    if format.holds == "affine":
        return [StoredLink(metric.affine)]
    return [StoredLink(k.affine, None if k.displacement is None else k.displacement_grid, k.displacement) for k in metric.links]


def _archives(
    transform: TransformLike, images: bool, fixed: str | Path | None, moving: str | Path | None, output: str
) -> tuple[LinkedImage | None, LinkedImage | None]:
    """What is to be linked at either end of a scene. Raises ConfigError where nothing can be."""
    if not (images or fixed or moving):
        return None, None
    if not any(f.in_blocks for f in transform_formats.by_ending(output)):
        scenes = " or ".join(transform_formats.endings(in_blocks=True))
        raise ConfigError(f"{output}: archives are linked below a scene, which is a {scenes}; choose that ending.")
    found = [None if given is None else find_image(n, given) for n, given in (("fixed", fixed), ("moving", moving))]
    if images:
        known = _recorded(transform, [n for n, image in zip(("fixed", "moving"), found, strict=True) if image is None])
        require_distinct(output, *known.values())
        found = [image or _if_possible(n, known[n]) for n, image in zip(("fixed", "moving"), found, strict=True)]
    for image in found:
        if image is not None and os.path.realpath(output).startswith(image.target + "/"):
            raise OutputError(f"{output} is inside {image.target}, which it is to link: a circle; choose another output.")
    if not any(found):
        raise ConfigError(
            f"none of the images of {path_of(transform)} can be linked; name OME-Zarr archives with --fixed and --moving."
        )
    return found[0], found[1]


def _recorded(transform: TransformLike, roles: Sequence[str]) -> dict[str, str | None]:
    """Addresses of the images that a run was made from. Raises ConfigError where another image is there by now."""
    path = path_of(transform)
    store = RunStore.open(path) if path is not None and is_run(path) else None
    if store is None or not store.recipe:
        raise ConfigError(f"{path or 'the transform'} does not know its images; name them with --fixed and --moving.")
    return {n: recorded_image(store, n) for n in roles}


def _if_possible(name: str, address: str | None) -> LinkedImage | None:
    if address is None:
        return None
    try:
        return find_image(name, address)
    except ConfigError as error:
        log.warning("the %s image is not linked: %s", name, error)
        return None


def warp_alone(transform: Transform) -> Transform:
    """A transform that begins with its only displacement, without the affine behind it. Raises NotFound and ConfigError."""
    if transform.is_affine:
        raise NotFound("the transform has no displacement, its stages are linear; export its affine (--part affine) instead.")
    first, *others = transform.links
    if first.displacement is None or any(link.displacement is not None for link in others):
        raise ConfigError("the transform is a chain in which no one displacement comes first; export the whole (--part total).")
    return replace(transform, links=(Link(np.eye(4), first.grid, first.displacement),))


def displacement_field(transform: Transform) -> da.Array:
    """``phi(x) - x``, lazily (3, Z, Y, X) float32: in the transform's unit on the fixed grid, components z, y, x."""
    shape = transform.grid.shape
    return by_block(_Field(transform), (3, *shape), np.dtype(np.float32), (1, *block_of(shape, 4)))


def flattened(transform: Transform) -> Transform:
    """The same on the fixed grid, and the identity beyond it, as one displacement ``phi(x) - x``, lazily."""
    grid = transform.grid.to_unit(transform.unit)
    return Transform.of(None, grid, _Sliced(transform), transform.moving)


class _Sliced:
    """``phi(x) - x`` as a field that is sliced."""

    def __init__(self, transform: Transform) -> None:
        self.transform, self.shape = transform, (3, *transform.grid.shape)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """The voxels of basic slices, all components."""
        ends = [s.indices(n)[:2] for s, n in zip(index[-3:], self.shape[-3:], strict=True)]
        return self.transform.field(Region(tuple(a for a, _ in ends), tuple(b for _, b in ends)))


class _Field:
    """One component at a time: files hold one after the other."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, box: Region, components: range) -> NDArray[np.float32]:
        return self.transform.field(box, components)

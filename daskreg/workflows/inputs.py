"""The images, masks and configuration of a run: opened and checked, not read."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.config import Config, Deformable, Linear, Stage
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, GridError, NotFound, UnitsError
from daskreg.grid import MINIMUM_PLANES, OPENED_ARRAY, Grid, Index, cut_orders
from daskreg.html import joined
from daskreg.lazy.load import FinishedRun, load_transform, path_of
from daskreg.lazy.resample import exchanged, lies_elsewhere, mistaken_lengths
from daskreg.lazy.transform import Transform
from daskreg.planning import COUNTED_BYTES, Encoding, Plan, make_plan
from daskreg.storage import Volume, is_remote, open_volume, write_image
from daskreg.storage.fill import Fill, parse_fill, require_fill
from daskreg.storage.fs.errors import require_exists
from daskreg.storage.fs.files import hidden_sibling
from daskreg.storage.images import ImageSource
from daskreg.storage.objects import address_of_object
from daskreg.workflows.background import Choice, parse_background
from daskreg.workflows.masks import RESAMPLED, open_mask
from daskreg.workflows.presets import PRESETS, preset

if TYPE_CHECKING:
    import dask

    from daskreg import cluster as clusters
    from daskreg.cluster import Client
else:
    dask = DeferredModule("dask")
    clusters = DeferredModule("daskreg.cluster")

log = logging.getLogger("daskreg")
CONFIG_ENDINGS = (".yaml", ".yml", ".json")
LEAST_COVERED = 3  # planes of the fixed image that differences across them read
IMAGE_ROLES = ("fixed", "moving", "fixed_mask", "moving_mask")
ImageLike = ImageSource | Volume
Spacing = float | str | Sequence[float] | None  # world units a voxel, z, y, x, one number for all, or text as 2x1x1
ConfigLike = Config | str | Path | Stage | Sequence[Stage] | Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """The arguments of a registration: addresses, arrays or Volumes, not opened yet; None: not given."""

    fixed: ImageLike | None = None
    moving: ImageLike | None = None
    config: ConfigLike | None = None
    fixed_mask: ImageLike | None = None
    moving_mask: ImageLike | None = None
    spacing: Spacing = None
    initial_transform: str | Path | FinishedRun | None = None
    fill: Fill = None
    background: Choice = None

    @property
    def chosen(self) -> Config:
        """The configuration, ``brain`` by default, with what else was given of its fields. Raises ConfigError."""
        config = as_config("brain" if self.config is None else self.config)
        start = None if self.initial_transform is None else str(path_of(self.initial_transform) or self.initial_transform)
        given = {"initial_transform": start, "fill": parse_fill(self.fill)}
        update = {name: value for name, value in given.items() if value is not None} | parse_background(self.background)
        return config.model_copy(update=update)

    def open(self) -> Inputs:
        """Open everything a run reads. Raises InputError in all its forms."""
        if self.fixed is None or self.moving is None:
            raise ConfigError("two images are needed: daskreg register FIXED MOVING -o RUN.zarr.")
        return open_inputs(self.fixed, self.moving, self.chosen, self.fixed_mask, self.moving_mask, self.spacing)

    def recipe(self) -> dict[str, Any]:
        """What is stored with a run to resume it: addresses, the configuration, and which images are arrays in memory."""
        addresses = {name: address_of(getattr(self, name)) for name in (*IMAGE_ROLES, "spacing")}
        arrays = [name for name in IMAGE_ROLES if getattr(self, name) is not None and addresses[name] is None]
        return {**addresses, "config": self.chosen.model_dump(mode="json"), "arrays": arrays}


@dataclass(frozen=True)
class Inputs:
    """The opened images, masks, configuration and initial transform of a run; no voxel is read yet.

    masks: of the fixed and the moving image, each on its image's grid;  start: the transform to start from, in the fixed
    image's unit.
    """

    fixed: Volume
    moving: Volume
    config: Config
    masks: tuple[Volume | None, Volume | None] = (None, None)
    start: Transform | None = None

    @property
    def orders(self) -> tuple[Index, Index]:
        """Axes of fixed and moving in the order in which a rank holds them, the one that is cut first; see ``cut_orders``."""
        return cut_orders(self.fixed.grid, self.moving.grid)

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """As stored, in the fixed image's unit."""
        return self.fixed.grid, self.moving.grid.to_unit(self.fixed.grid.unit)

    def cut(self) -> tuple[Volume, Volume, Volume | None, Volume | None]:
        """Images and masks as the ranks see them."""
        f, m = self.orders
        masks = [None if mask is None else mask.permute(o) for mask, o in zip(self.masks, (f, m), strict=True)]
        return self.fixed.permute(f), self.moving.permute(m), masks[0], masks[1]

    def plan(
        self,
        workers: int = 1,
        memory: int | None = None,
        residency: str = "auto",
        minimum_planes: int = MINIMUM_PLANES,
        process: int = 0,
        state: str = "auto",
        host: int | None = None,
        images: str = "auto",
        scratch: int | None = None,
    ) -> Plan:
        """The plan for a number of workers."""
        backgrounds = self.config.fixed_background, self.config.moving_background
        masked = (
            self.masks[0] is not None or backgrounds[0] is not None,
            self.masks[1] is not None or backgrounds[1] is not None,
        )
        given: dict[str, Any] = {"workers": workers, "memory": memory, "residency": residency}
        given |= {"minimum_planes": minimum_planes, "process": process, "state": state, "host": host}
        given["unpacked"] = tuple(_largest_chunk(volume) for volume in (self.fixed, self.moving))
        f, m = given["orders"] = self.orders
        given |= {"images": images, "scratch": scratch}
        given["encodings"] = _encoding(self.fixed.permute(f)), _encoding(self.moving.permute(m))
        return make_plan(self.fixed.grid.permute(f), self.moving.grid.permute(m), self.config, masks=masked, **given)

    def for_device(self, kind: str) -> Inputs:
        """The same in a precision that the device has: mixed storage is for GPUs, moments in 16 bits alone for CPUs."""
        config = self.config.without_storage("moments" if kind == "cuda" else "mixed")
        if config == self.config:
            return self
        if kind == "cuda":
            log.warning("storage: moments is for CPUs; on a GPU the run is computed in float32, unless in storage: mixed.")
        else:
            log.warning("storage: mixed is for GPUs; on a CPU the run is computed in float32, unless in storage: moments.")
        return replace(self, config=config)


def _encoding(volume: Volume) -> Encoding:
    """How an image is stored, as the ranks see it."""
    dtype = volume.dtype
    return Encoding(volume.piece, dtype.itemsize, dtype.kind in "biu" and dtype.itemsize <= COUNTED_BYTES)


def _largest_chunk(volume: Volume) -> int:
    """Bytes."""
    return int(math.prod(max(sizes) for sizes in volume.data.chunks) * volume.dtype.itemsize)


def open_inputs(
    fixed: ImageLike,
    moving: ImageLike,
    config: ConfigLike,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    spacing: Spacing = None,
) -> Inputs:
    """Open both images, their masks and the initial transform. Raises InputError in all its forms."""
    chosen = as_config(config)
    volumes = open_volume(fixed, spacing=spacing_for(fixed, spacing)), open_volume(moving, spacing=spacing_for(moving, spacing))
    masks = (
        open_mask(chosen.fixed_mask if fixed_mask is None else fixed_mask, volumes[0], "fixed"),
        open_mask(chosen.moving_mask if moving_mask is None else moving_mask, volumes[1], "moving"),
    )
    require_fill(chosen.fill, clusters.moved_dtype(volumes[1]), volumes[1].name)
    _warn_orientation(*volumes)
    _warn_of_turned_axes(*volumes)
    start = open_initial_transform(chosen.initial_transform, volumes[0].grid.unit)
    if start is not None:
        _warn_of_other_pair(start, volumes, str(chosen.initial_transform))
    inputs = Inputs(*volumes, chosen if start is None else stages_after(chosen, start), masks, start)
    require_thickness(inputs.grids, inputs.config)
    require_comparable_sizes(inputs.grids, start)
    return inputs


def open_initial_transform(source: str | None, unit: str | None) -> Transform | None:
    """The transform that a configuration starts from, in a unit of length; None where it names none."""
    if source is None:
        return None
    found = load_transform(source)
    return found.to_unit(unit) if unit is not None and found.unit is not None else found


def _warn_of_other_pair(start: Transform, volumes: tuple[Volume, Volume], name: str) -> None:
    """Log a warning where an initial transform is of the two images in the other order, or of another fixed image."""
    (fixed, moving), grids, own = volumes, start.grids, start.fixed
    if exchanged(fixed, moving, grids):
        log.warning(
            "%s was made for the two images in the other order: it maps points of %s to points of %s. 'daskreg invert' makes the "
            "one that is needed here.",
            name, moving.name, fixed.name,
        )  # fmt: skip
    elif (
        own is not None and (own.unit is None) == (fixed.grid.unit is None) and lies_elsewhere(fixed.grid.to_unit(own.unit), own)
    ):
        log.warning(
            "hardly anything of %s lies where the fixed image of %s is (%s): it was made for other images", fixed.name, name,
            own.summary(),
        )  # fmt: skip


def stages_after(config: Config, start: Transform) -> Config:
    """Only the deformable stages where the start has a displacement already: the others would begin before it.

    Raises ConfigError where there are none.
    """
    if start.is_affine:
        return config
    kept = tuple(s for s in config.stages if isinstance(s, Deformable))
    if not kept:
        raise ConfigError(
            f"{config.initial_transform} has a displacement, which only a deformable stage can start from; "
            "the configuration has none."
        )
    if len(kept) < len(config.stages):
        left = [s.stage for s in config.stages if not isinstance(s, Deformable)]
        log.info("the initial transform has a displacement: starting from it, without the stages %s", ", ".join(left))
    return config.model_copy(update={"stages": kept})


def spacing_for(source: ImageLike, spacing: Spacing) -> Spacing:
    """The general spacing, unless the address states its own."""
    return None if isinstance(source, str) and "spacing=" in source.partition("::")[2] else spacing


def as_config(config: ConfigLike) -> Config:
    """A Config from itself, a preset's name, a YAML file, a list of stages or a plain tree. Raises NotFound and ConfigError."""
    if isinstance(config, Config):
        return config
    if isinstance(config, Path) or (isinstance(config, str) and _names_file(config)):
        return _loaded(config)
    if isinstance(config, str):
        return preset(config)
    return Config.parse(config) if isinstance(config, Mapping) else Config.of_stages(config)


def _names_file(config: str) -> bool:
    return config not in PRESETS and (config.lower().endswith(CONFIG_ENDINGS) or os.path.isfile(config))


def _loaded(path: str | Path) -> Config:
    try:
        require_exists(str(path))
    except NotFound as error:
        if str(path) in PRESETS:
            raise NotFound(f"config {path} does not exist as a file; the preset of that name is --preset {path}.") from None
        raise NotFound(f"config {str(error).rstrip('.')}; give a YAML file, or a preset: {', '.join(PRESETS)}.") from None
    return Config.load(path)


def require_thickness(grids: tuple[Grid, Grid], config: Config) -> None:
    """Raises GridError for a moving image of one or two planes that linear stages cannot compare with a thicker fixed one.

    Voxels of the fixed image are compared where the moving planes are. Differences need three of them, and coarse levels have
    none where their voxels are larger than the planes are thick. The other way round all of the thin image is compared.
    """
    fixed, moving = grids
    thin = int(np.argmin(moving.shape))
    across = int(np.abs(np.asarray(fixed.direction).T @ np.asarray(moving.direction)[:, thin]).argmax())
    n, planes = moving.shape[thin], fixed.shape[across]
    covered = n * moving.spacing[thin] / fixed.spacing[across]
    if n > 2 or covered >= LEAST_COVERED or planes <= (1 if n == 1 else LEAST_COVERED) or min(fixed.shape) == 1:
        return
    stages = [s for s in config.stages if isinstance(s, Linear)]
    coarse = n == 1 and planes > LEAST_COVERED and any(max(s.scales) > covered for s in stages)
    if coarse or any(s.similarity.kind == "ngf" for s in stages):
        raise GridError(
            f"the moving image has {n} plane{'s' * (n > 1)}, the fixed one {planes}: too few voxels could be compared. "
            "Exchange them (daskreg register MOVING FIXED), and use the inverse of the result (daskreg invert)."
        )


def require_comparable_sizes(grids: tuple[Grid, Grid], start: Transform | None) -> None:
    """Raises UnitsError for images of which one is hundreds of times as long as the other, as where units are mistaken."""
    scale = 1.0 if start is None else abs(float(np.linalg.det(start.affine[:3, :3]))) ** (1 / 3)
    if (lengths := mistaken_lengths(*grids, scale)) is not None:
        fixed, moving = lengths
        unit = f" {grids[0].unit}" if grids[0].unit else ""
        raise UnitsError(
            f"the fixed image is {fixed:.3g}{unit} across and the moving one {moving:.3g}{unit}: check their voxel sizes and "
            f"units, which '::spacing=2x2x2,unit=mm' behind an address corrects (of an array in Python: {OPENED_ARRAY})."
        )


def _warn_orientation(fixed: Volume, moving: Volume) -> None:
    if fixed.grid.oriented != moving.grid.oriented:
        unsaid = moving if fixed.grid.oriented else fixed
        log.warning("%s does not say how its axes lie in space; taken as LPS, unlike the other image's header", unsaid.name)


def _warn_of_turned_axes(fixed: Volume, moving: Volume) -> None:
    """Where both images have the same number of voxels along each axis, but in the reverse order."""
    a, b = fixed.grid, moving.grid
    if a.shape == b.shape[::-1] and a.shape != b.shape and not (a.oriented and b.oriented):
        log.warning(
            "%s is %s (z, y, x) and %s %s: are the axes of one of them x, y, z? '::axes=xyz' behind an address turns them, "
            "axes='xyz' of daskreg.open_volume those of an array",
            fixed.name, joined(a.shape), moving.name, joined(b.shape),
        )  # fmt: skip


@contextmanager
def staged(inputs: Inputs, output: str, client: Client | None) -> Iterator[Inputs]:
    """Inputs that every worker can read, from a temporary folder beside the output where they cannot be read as they are.

    client: of workers in other processes, which cannot read arrays in memory; None: they are in this one. Masks that are
    resampled are computed here once, and not again by each rank.
    """
    given = [inputs.fixed, inputs.moving, *inputs.masks]
    stage = (RESAMPLED,) if client is None else ("array", RESAMPLED)
    if is_remote(output) or not any(v is not None and v.format in stage for v in given):
        yield inputs
        return
    parent, prefix = os.path.split(hidden_sibling(os.path.realpath(output), "part-inputs-"))
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:  # of a killed process, the next writer deletes it
        fixed, moving, *masks = (
            v if v is None or v.format not in stage else _stage(v, f"{folder}/{k}.ome.zarr", client) for k, v in enumerate(given)
        )
        assert fixed is not None
        assert moving is not None
        yield replace(inputs, fixed=fixed, moving=moving, masks=(masks[0], masks[1]))


def _stage(volume: Volume, path: str, client: Client | None) -> Volume:
    on_cluster = client is not None and clusters.futures_of(volume.data)
    with client.as_current() if client is not None and on_cluster else dask.config.set(scheduler="threads"):
        write_image(path, volume.data, volume.grid)
    return replace(open_volume(path, grid=volume.grid), name=volume.name)


def address_of(source: Any) -> Any:
    """The address of an input, or a number; None for what is in memory."""
    if source is not None and not isinstance(source, str | Path | int | float | list | tuple | Volume):
        return address_of_object(source)
    return str(source) if isinstance(source, str | Path) else source if isinstance(source, int | float | list | tuple) else None

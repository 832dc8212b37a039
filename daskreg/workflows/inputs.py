"""The images, masks and recipe of a run, opened and checked, not read."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask

from daskreg.cluster import Client, futures_of
from daskreg.config import Config, Deformable, Stage
from daskreg.errors import ConfigError
from daskreg.grid import MINIMUM_PLANES, Grid, Index, cut_orders
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.planning import Plan, make_plan
from daskreg.storage import Volume, is_remote, open_volume, write_image
from daskreg.workflows.presets import preset

log = logging.getLogger("daskreg")


@dataclass(frozen=True)
class Inputs:
    """The opened images and masks of a run, and how they are to be registered; nothing is read yet.

    orders: axes of fixed and moving in the order in which a rank holds them, the one that is cut first; see ``cut_orders``;
    start: the transform to start from, in the fixed image's unit.
    """

    fixed: Volume
    moving: Volume
    config: Config
    masks: tuple[Volume | None, Volume | None] = (None, None)
    start: Transform | None = None

    @property
    def orders(self) -> tuple[Index, Index]:
        """Follow from the grids."""
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
        fewest: int = MINIMUM_PLANES,
        process: int = 0,
    ) -> Plan:
        """What will run on so many workers."""
        masked = (self.masks[0] is not None, self.masks[1] is not None)
        given: dict[str, Any] = {
            "workers": workers,
            "memory": memory,
            "residency": residency,
            "minimum_planes": fewest,
            "process": process,
        }
        given["unpacked"] = tuple(_largest_chunk(volume) for volume in (self.fixed, self.moving))
        f, m = self.orders
        return make_plan(self.fixed.grid.permute(f), self.moving.grid.permute(m), self.config, masks=masked, **given)


def _largest_chunk(volume: Volume) -> int:
    """Bytes."""
    return int(math.prod(max(sizes) for sizes in volume.data.chunks) * volume.dtype.itemsize)


def open_inputs(
    fixed: Any,
    moving: Any,
    config: Config | str | Sequence[Stage] | Mapping[str, Any],
    fixed_mask: Any = None,
    moving_mask: Any = None,
    spacing: Any = None,
) -> Inputs:
    """Open everything a run reads. Raises InputError in all its forms."""
    chosen = as_config(config)
    volumes = open_volume(fixed, spacing=spacing_for(fixed, spacing)), open_volume(moving, spacing=spacing_for(moving, spacing))
    masks = _mask(fixed_mask, chosen.fixed_mask, volumes[0]), _mask(moving_mask, chosen.moving_mask, volumes[1])
    _warn_orientation(*volumes)
    start = initial(chosen.initial_transform, volumes[0].grid.unit)
    return Inputs(*volumes, chosen if start is None else going_on(chosen, start), masks, start)


def initial(source: str | None, unit: str | None) -> Transform | None:
    """The transform that a configuration starts from, in a unit of length; None where it names none."""
    if source is None:
        return None
    found = load_transform(source)
    return found.to_unit(unit) if unit is not None and found.unit is not None else found


def going_on(config: Config, start: Transform) -> Config:
    """Only the deformable stages where the start has a displacement already: the others would begin before it.

    Raises ConfigError where there are none.
    """
    if start.is_affine:
        return config
    kept = tuple(s for s in config.stages if isinstance(s, Deformable))
    if not kept:
        raise ConfigError(
            f"{config.initial_transform} has a displacement, which only a deformable stage can start from; the recipe has none."
        )
    if len(kept) < len(config.stages):
        left = [s.stage for s in config.stages if not isinstance(s, Deformable)]
        log.info("the initial transform has a displacement: starting from it, without the stages %s", ", ".join(left))
    return config.model_copy(update={"stages": kept})


def spacing_for(source: Any, spacing: Any) -> Any:
    """The general spacing, unless the address states its own."""
    return None if isinstance(source, str) and "spacing=" in source.partition("::")[2] else spacing


def as_config(config: Config | str | Sequence[Stage] | Mapping[str, Any]) -> Config:
    """A Config from itself, a preset's name, a list of stages or a plain tree."""
    if isinstance(config, Config):
        return config
    if isinstance(config, str):
        return preset(config)
    return Config.parse(config) if isinstance(config, Mapping) else Config.of_stages(config)


def _mask(given: Any, configured: str | None, image: Volume) -> Volume | None:
    mask = configured if given is None else given
    if mask is None:
        return None
    return open_volume(mask, grid=image.grid) if not isinstance(mask, str | Path) else open_volume(mask)


def _warn_orientation(fixed: Volume, moving: Volume) -> None:
    if fixed.grid.oriented != moving.grid.oriented:
        unsaid = moving if fixed.grid.oriented else fixed
        log.warning("%s does not say how its axes lie in space; taken as LPS, unlike the other image's header", unsaid.name)


@contextmanager
def staged(inputs: Inputs, output: str, seat: Client | None) -> Iterator[Inputs]:
    """Inputs that workers in other processes can read: arrays in memory go, for the time being, to a folder beside the output."""
    given = [inputs.fixed, inputs.moving, *inputs.masks]
    if seat is None or is_remote(output) or not any(v is not None and v.format == "array" for v in given):
        yield inputs
        return
    with tempfile.TemporaryDirectory(prefix=".daskreg-inputs-", dir=Path(output).parent) as folder:
        fixed, moving, *masks = (None if v is None else _stage(v, f"{folder}/{k}.ome.zarr", seat) for k, v in enumerate(given))
        assert fixed is not None
        assert moving is not None
        yield replace(inputs, fixed=fixed, moving=moving, masks=(masks[0], masks[1]))


def _stage(volume: Volume, path: str, seat: Client) -> Volume:
    if volume.format != "array":
        return volume
    with seat.as_current() if futures_of(volume.data) else dask.config.set(scheduler="threads"):
        write_image(path, volume.data, volume.grid)
    return replace(open_volume(path, grid=volume.grid), name=volume.name)


def address_of(source: Any) -> Any:
    """What can be written down of an input: its address."""
    return str(source) if isinstance(source, str | Path) else source if isinstance(source, int | float | list | tuple) else None

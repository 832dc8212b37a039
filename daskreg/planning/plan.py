"""What will run: every level of every stage, decided before a voxel is read. A value, and small."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from daskreg.config import Config, Deformable, Linear, Optimised, Search, Stage
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, PlanTooLarge, counted
from daskreg.grid import MINIMUM_PLANES, Grid, Index, Partition, Sigmas, level_factors, matching_sigmas
from daskreg.html import preformatted
from daskreg.planning.layout import RESIDENCIES, SOURCE, STATES, Encoding, Layout, Level
from daskreg.planning.memory import MemoryUse, elsewhere, level_memory, peak_bytes, window_bytes
from daskreg.planning.slabs import HEIGHTS, sampled_planes
from daskreg.planning.table import lines, rounded_up, size
from daskreg.planning.traffic import most_sent, value_bytes, window_planes

if TYPE_CHECKING:
    from daskreg.kernels.device import Kind
    from daskreg.kernels.smoothing import cpu as smoothing
else:
    smoothing = DeferredModule("daskreg.kernels.smoothing.cpu")

SEARCHED = 64**3  # voxels of the finest lattice on which a search of all rotations compares edges (``engine.pose_search``)
GOOD_SLAB = 24  # planes: from there on little is computed twice
One = TypeVar("One")
MORE_WORKERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # that are tried for an advice


@dataclass(frozen=True)
class Plan(Layout):
    """A layout, and what it needs: memory, traffic, time. device: whose speed ``lines`` assumes."""

    device: Kind = "cpu"

    def memory_use(self, stage: int, level: Level) -> MemoryUse:
        """Projected bytes of the largest rank while ``level`` of the stage with an index runs."""
        return level_memory(self, stage, level)

    def traffic(self, stage: int, level: Level) -> int:
        """Bytes that the rank that sends most sends in an iteration."""
        return most_sent(self, stage, level)

    @property
    def state(self) -> str:
        """Where most of the fields are."""
        return max((level.state for levels in self.levels for level in levels), key=STATES.index, default="device")

    @property
    def on_disk(self) -> bool:
        """Whether fields or images are in a scratch folder."""
        levels = [level for levels in self.levels for level in levels]
        return "disk" in (self.state, self.images, *(level.images for level in levels))

    @property
    def peak_bytes(self) -> int:
        """Projected peak of a worker's process: arrays of the largest level, and what any process needs."""
        return peak_bytes(self)

    @property
    def least_bytes(self) -> int:
        """Memory of a worker that is enough: in more of it, images that stay in their files are read in larger boxes."""
        enough = rounded_up(self.peak_bytes)
        while (needed := replace(self, memory=enough).peak_bytes) > enough:
            enough = rounded_up(needed)
        return enough

    def lines(self, device: Kind | None = None) -> list[str]:
        """Human-readable table: one line a level, then memory, disk and time. device: instead of the plan's."""
        return lines(self, device=device or self.device)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        levels = sum(map(len, self.levels))
        parts = counted(len(self.config.stages), "stage"), counted(levels, "level"), counted(self.workers, "worker")
        return f"Plan({', '.join(parts)}, {size(self.peak_bytes)} each)"

    def _repr_html_(self) -> str:
        return preformatted("Plan", str(self))

    def validate(self, memory: int, source: str = "") -> None:
        """Raise PlanTooLarge when a worker needs more than ``memory`` bytes; source: what limits them."""
        if self.peak_bytes > memory:
            fixed, moving = map(format_shape, self.stored_shapes(self.fixed, self.moving))
            shapes = f"fixed {fixed}, moving {moving}, {counted(self.workers, 'worker')}"
            raise PlanTooLarge(
                f"this run needs {size(self.least_bytes, up=True)} a worker ({shapes}), "
                f"a worker has {size(memory)}{f' ({source})' * bool(source)}; {self.remedy(memory)}"
            )
        beside = elsewhere(self)[0]
        if self.host is not None and beside > self.host:
            raise PlanTooLarge(
                f"the fields of this run need {size(beside)} of a worker's host memory, {size(self.host)} "
                "may be used; allow more (--host-memory), keep them on disk (--state disk --scratch FOLDER), or use more workers."
            )

    def remedy(self, memory: int) -> str:
        """What would fit, for an error message."""
        same = ("masks", "unpacked", "process", "host", "encodings", "orders", "minimum_planes")
        given: dict[str, Any] = {name: getattr(self, name) for name in same} | {"memory": memory}
        residency, state, images = self.asked
        given |= {"residency": residency, "state": self.state if state == "auto" else state, "images": images}
        least = size(self.least_bytes, up=True)
        allow = f"allow {least} on machines that have it (--memory {least.replace(' ', '')})"
        for workers in (n for n in MORE_WORKERS if n > self.workers):
            more = make_plan(self.fixed, self.moving, self.config, workers=workers, **given)
            if more.peak_bytes <= memory:
                return (
                    f"{allow}, use {counted(workers, 'worker')} of that memory, drop the finest scale from the stages, "
                    "or read a coarser level of the images ('::level=1')."
                )
        return (
            f"no more workers of that memory would do, up to {MORE_WORKERS[-1]}: drop the finest scale from the stages, read a "
            f"coarser level of the images ('::level=1'), or {allow}."
        )


def make_plan(
    fixed: Grid,
    moving: Grid,
    config: Config,
    *,
    masks: tuple[bool, bool] = (False, False),
    workers: int = 1,
    memory: int | None = None,
    residency: str = "auto",
    minimum_planes: int = MINIMUM_PLANES,
    unpacked: tuple[int, int] = (0, 0),
    process: int = 0,
    state: str = "device",
    host: int | None = None,
    images: str = "auto",
    orders: tuple[Index, Index] = ((0, 1, 2), (0, 1, 2)),
    encodings: tuple[Encoding, Encoding] = (Encoding(), Encoding()),
    scratch: int | None = None,
) -> Plan:
    """Levels of every stage, cut into a block a worker. Raises UnitsError when the images' units cannot be brought together.

    residency: of the moving image, ``auto`` takes the first of replicate, window and ring that fits into ``memory`` bytes;
    state: where displacement and optimizer state are (``STATES``), ``auto`` takes the first of these where they fit;
    images: where both images are, ``auto`` takes the first place where they fit, and in memory where there is no limit;
    scratch: bytes of it that a worker may use, None for any number;
    masks, minimum_planes, unpacked, process, host, orders, encodings: see ``Layout``.
    """
    if images == SOURCE and host is not None:
        raise ConfigError("images that stay in their files are read by CPUs so far; use --device cpu, or --images host or disk.")
    moving = moving.to_unit(fixed.unit)
    cut = _Cut(workers, minimum_planes, "replicate" if residency == "auto" else residency)
    levels = tuple(
        _finer_than_search(before, stage, cut.levels(fixed, moving, stage)) if isinstance(stage, Optimised) else ()
        for before, stage in pairwise([None, *config.stages])
    )
    if images == SOURCE:
        _require_coarse(config, levels)
    given: dict[str, Any] = {"masks": masks, "workers": workers, "memory": memory, "minimum_planes": minimum_planes}
    given |= {"unpacked": unpacked, "process": process, "host": host, "encodings": encodings, "orders": orders}
    plan = Plan(fixed, moving, config, levels, asked=(residency, state, images), **given)
    choices = _Choices(
        RESIDENCIES if residency == "auto" and workers > 1 and memory is not None else (cut.residency,),
        STATES if state == "auto" and memory is not None else ("device",) if state == "auto" else (state,),
    )
    places = _places(plan, choices) if images == "auto" else (images,)
    made = [choices.made(replace(plan, images=where)) for where in places]
    if SOURCE in places and "disk" in choices.states:  # what fits by itself may not while images are read or measured
        made += [replace(choices, kept=(where,)).made(replace(plan, images=SOURCE)) for where in ("device", "disk")]
    fitting = [one for one in made if _fits(one)]
    roomy = [one for one in fitting if scratch is None or elsewhere(one)[1] <= scratch]
    otherwise = min((one for one in made if one.images == SOURCE), key=lambda one: one.peak_bytes, default=made[0])
    return _preferred(roomy or fitting, _lowest_slab) or otherwise


def _finer_than_search(before: Stage | None, stage: Optimised, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels of a linear stage without those that show less than a search of all rotations right before it has compared;
    the last one stays.
    """
    if not (isinstance(before, Search) and before.rotations == "fine" and isinstance(stage, Linear)):
        return levels
    return (*(level for level in levels[:-1] if level.fixed.size >= SEARCHED), levels[-1])


def _require_coarse(config: Config, levels: Sequence[Sequence[Level]]) -> None:
    """Raises ConfigError where a displacement has the voxels of the fixed image, as any scale of a small image may."""
    for stage, some in zip(config.stages, levels, strict=True):
        for level in some:
            if isinstance(stage, Deformable) and max(level.fixed_factors) == 1:
                raise ConfigError(
                    "images that stay in their files are for deformable stages that stop at a coarser scale, and scale "
                    f"{level.scale} of one has the voxels of the fixed image; use --images disk, or drop that scale."
                )


def _preferred(found: Sequence[One], slab: Callable[[One], int]) -> One | None:
    """The first with slabs that are high enough, else that with the highest: lower ones compute much twice."""
    return next((one for one in found if slab(one) >= GOOD_SLAB), max(found, key=slab, default=None))


def _lowest_slab(plan: Plan) -> int:
    return min((_slab(level) for levels in plan.levels for level in levels), default=GOOD_SLAB)


def _slab(level: Level) -> int:
    return min(level.slab, GOOD_SLAB) if "disk" in (level.state, level.images) or level.state == "host" else GOOD_SLAB


def _places(plan: Plan, choices: _Choices) -> tuple[str, ...]:
    """Where the images may be."""
    if plan.memory is None or choices.residencies == ("ring",):
        return ("device",)
    source = (SOURCE,) if plan.host is None and not _full(plan) else ()
    if choices.states == ("device",) or not plan.deformable:
        return ("device", *source)
    return STATES if plan.host is not None else ("device", "disk", *source)  # a CPU's own memory is what they do not fit into


def _full(plan: Plan) -> bool:
    """Whether a stage runs at full resolution of an image that is not much smaller than the other one."""
    levels = [level for levels in plan.levels for level in levels]
    return any(level.fixed.size > plan.fixed.size // 4 or 4 * level.moving.size > max(plan.fixed.size, plan.moving.size)
               for level in levels)  # fmt: skip


def _fits(plan: Plan) -> bool:
    return plan.memory is None or (plan.peak_bytes <= plan.memory and elsewhere(plan)[0] <= (plan.host or 0))


@dataclass(frozen=True)
class _Choices:
    """Where the moving image and the fields of a level may be, in the order of preference.

    kept: where levels of images that stay in their files may be
    """

    residencies: tuple[str, ...]
    states: tuple[str, ...]
    kept: tuple[str, ...] = ("device", "disk")

    def made(self, plan: Plan) -> Plan:
        """Each level with the first choice that fits; where none does, with that of the fewest bytes."""
        stages = enumerate(plan.levels)
        return replace(plan, levels=tuple(tuple(self._fitting(plan, k, level) for level in levels) for k, levels in stages))

    def _fitting(self, plan: Plan, stage: int, level: Level) -> Level:
        found = list(self._of(plan, stage, level))
        if len(found) == 1 or plan.memory is None:
            return found[0]
        needs = [plan.memory_use(stage, one) for one in found]
        fits = [n.total <= plan.memory and n.host <= (plan.host or 0) for n in needs]
        fitting = [one for one, fit in zip(found, fits, strict=True) if fit]
        return _preferred(fitting, _slab) or found[min(range(len(found)), key=lambda k: needs[k].total)]

    def _of(self, plan: Plan, stage: int, level: Level) -> Iterator[Level]:
        deformable = isinstance(plan.config.stages[stage], Deformable)
        for images in self._places(plan, level):
            for state in self.states if deformable else ("device",):
                if images == "device" or state != "device" or not deformable:
                    yield from self._residing(plan, stage, replace(level, state=state, images=images))

    def _places(self, plan: Plan, level: Level) -> tuple[str, ...]:
        """Of the images of a level."""
        if plan.images == "device":
            return ("device",)
        if plan.images == SOURCE:
            return self.kept if "disk" in self.states else ("device",)
        full = 1 in (max(level.fixed_factors), max(level.moving_factors))
        return (plan.images,) if full else ("device", plan.images)

    def _residing(self, plan: Plan, stage: int, level: Level) -> Iterator[Level]:
        for residency in self.residencies:
            if level.state == "device" and level.images == "device":
                yield replace(level, residency=residency)
            elif residency != "ring":
                yield _highest(plan, stage, replace(level, residency=residency))


def _highest(plan: Plan, stage: int, level: Level) -> Level:
    """With the highest slabs that fit into the memory, the lowest that are allowed where none do."""
    least, most = HEIGHTS

    def too_large(height: int) -> bool:
        return plan.memory is not None and plan.memory_use(stage, replace(level, slab=height)).total > plan.memory

    fitting = bisect_left(range(least, most + 1), True, key=too_large)  # so many heights fit
    return _with_window(plan, stage, replace(level, slab=least + max(fitting - 1, 0)))


def _with_window(plan: Plan, stage: int, level: Level) -> Level:
    """With the planes of the moving image that fit into what is left of the memory."""
    if level.images == "device" or plan.memory is None:
        return level
    kind, left = level.in_voxels(plan.config.stages[stage]), plan.memory - plan.memory_use(stage, level).total
    assert isinstance(kind, Optimised)
    planned = window_planes(plan, level, sampled_planes(level.slab, kind))
    each = 2 * window_bytes(plan, level, value_bytes(kind))
    lower = plan.memory_use(stage, replace(level, slab=level.slab - 1)).total
    traded = (plan.memory_use(stage, level).total - lower) // each
    return replace(level, window=planned + max(left, 0) // (2 * each), traded=traded)


@dataclass(frozen=True)
class _Cut:
    workers: int
    minimum_planes: int
    residency: str

    def levels(self, fixed: Grid, moving: Grid, stage: Optimised) -> tuple[Level, ...]:
        return tuple(self._level(fixed, moving, stage, s, n) for s, n in zip(stage.scales, stage.iterations, strict=True))

    def _level(self, fixed: Grid, moving: Grid, stage: Optimised, scale: int, iterations: int) -> Level:
        f, m, sigmas = _factors(fixed, moving, stage, scale)
        a, b = fixed.coarsen(f), moving.coarsen(m)
        slabs, shards = (Partition.of(g.shape[0], self.workers, self.minimum_planes) for g in (a, b))
        halo = halo_of(stage.in_voxels(a.edge_mm))
        return Level(scale, f, m, a, b, iterations, slabs, shards, self.residency, halo, moving_sigmas=sigmas)


def _factors(fixed: Grid, moving: Grid, stage: Optimised, scale: int) -> tuple[Index, Index, Sigmas | None]:
    """Of a level, and sigmas of the moving image where it is sampled more finely than the fixed one."""
    usual = level_factors(fixed, moving, scale)
    if not isinstance(stage, Deformable):
        return *usual, None
    f, m = level_factors(fixed, moving, scale, stage.moving_oversampling)
    return f, m, None if m == usual[1] else matching_sigmas(fixed, moving, (f, m))


def halo_of(stage: Optimised) -> int:
    """Planes around its own that a rank needs of one array or another."""
    window = stage.similarity.reach
    if not isinstance(stage, Deformable):
        return window
    model, warp = stage.model, stage.smooth_warp
    return max(window, smoothing.gaussian_radius(stage.smooth_gradient) + model.direction_reach(warp), model.reach(warp))


def format_shape(shape: Index) -> str:
    """``10 x 20 x 30``."""
    return " x ".join(map(str, shape))


def format_grid(grid: Grid) -> str:
    """Shape and size for a log line."""
    return f"{format_shape(grid.shape)} ({math.prod(grid.shape) / 1e6:.1f} Mvoxel)"

"""``daskreg register``: two images in, a run out."""

from __future__ import annotations

import atexit
import difflib
import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.utils import parse_bytes
from numpy.typing import NDArray

from daskreg.cluster import Job, embedded, existing, futures_of, run_job, worker_count, worker_memory
from daskreg.config import Config, Search, Stage
from daskreg.engine.report import Progress
from daskreg.errors import ConfigError, Diverged, InputError, NoOverlap, NotFound
from daskreg.grid import FEWEST_PLANES, Grid, Index, cut_orders
from daskreg.planning import RESIDENCIES, Plan, make_plan, voxels
from daskreg.storage import CheckpointStore, RunStore, Volume, is_remote, open_volume, read_affine, write_image
from daskreg.workflows.presets import preset

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.cluster import Client

log = logging.getLogger("daskreg")
_NAMED = ("output", "fixed_mask", "moving_mask", "client", "cluster", "spacing", "overwrite", "resume", "progress")
PACKAGES = ("daskreg", "numpy", "numba", "dask", "distributed", "zarr", "scipy", "nibabel")


@dataclass(frozen=True)
class Result:
    """A finished run: ``moved`` and the transform, lazily, and how it went."""

    store: RunStore

    @property
    def path(self) -> str:
        """Where the run is."""
        return self.store.path

    @property
    def moved(self) -> Volume:
        """The moving image on the fixed grid."""
        return self.store.read_image("moved")

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) world map from fixed to moving points, order z, y, x, 1."""
        return self.store.affine

    @property
    def displacement(self) -> da.Array | None:
        """(3, Z, Y, X) world units, components z, y, x, applied before the affine map; None without a deformable stage."""
        return self.store.displacement() if self.store.has("transform/displacement") else None

    @property
    def report(self) -> dict[str, Any]:
        """Configuration, versions, inputs, losses and times."""
        return self.store.provenance


@dataclass(frozen=True)
class Resources:
    """What a run may use, none of which shows in its result.

    workers: blocks the fixed image is cut into, None for one a worker of the cluster;  memory: bytes a worker may use, None for
    what it has;  residency: of the moving image, auto, replicate, window or ring;  comm: auto, tcp or ucx;  threads: CPU threads
    of a worker;  checkpoint: seconds between two, None for none;  retries: how often a run that lost a worker goes on without it;
    deadline: seconds after which a silent rank counts as lost.
    """

    workers: int | None = None
    memory: int | None = None
    residency: str = "auto"
    comm: str = "auto"
    threads: int | None = None
    checkpoint: float | None = 180.0
    retries: int = 1
    deadline: float = 600.0
    fewest: int = FEWEST_PLANES
    trace: bool = False


@dataclass(frozen=True)
class Inputs:
    """The opened images and masks of a run, and how they are to be registered; nothing is read yet.

    orders: axes of fixed and moving in the order in which a rank holds them, the one that is cut first; see ``cut_orders``.
    """

    fixed: Volume
    moving: Volume
    config: Config
    masks: tuple[Volume | None, Volume | None] = (None, None)

    @property
    def orders(self) -> tuple[Index, Index]:
        """Follow from the grids."""
        return cut_orders(self.fixed.grid, self.moving.grid)

    def cut(self) -> tuple[Volume, Volume, Volume | None, Volume | None]:
        """Images and masks as the ranks see them."""
        f, m = self.orders
        masks = [None if mask is None else mask.permute(o) for mask, o in zip(self.masks, (f, m), strict=True)]
        return self.fixed.permute(f), self.moving.permute(m), masks[0], masks[1]

    def plan(self, workers: int = 1, memory: int | None = None, residency: str = "auto", fewest: int = FEWEST_PLANES) -> Plan:
        """What will run on so many workers."""
        masked = (self.masks[0] is not None, self.masks[1] is not None)
        given: dict[str, Any] = {"workers": workers, "memory": memory, "residency": residency, "fewest": fewest}
        f, m = self.orders
        return make_plan(self.fixed.grid.permute(f), self.moving.grid.permute(m), self.config, masks=masked, **given)


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
    return Inputs(*volumes, chosen, masks)


def plan(
    fixed: Any,
    moving: Any,
    config: Config | str | Sequence[Stage] | Mapping[str, Any] = "brain",
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    workers: int = 1,
    memory: int | str | None = None,
    residency: str = "auto",
    spacing: Any = None,
) -> Plan:
    """Levels, blocks, residency, memory and traffic of a registration that is not run; its ``lines()`` are for people.

    memory: bytes a worker may use, or text such as "48GB".  Raises InputError, and PlanTooLarge where it does not fit.
    """
    limit = parse_memory(memory)
    found = open_inputs(fixed, moving, config, fixed_mask, moving_mask, spacing).plan(workers, limit, residency)
    if limit is not None:
        found.validate(limit)
    return found


def parse_memory(text: int | str | None) -> int | None:
    """Bytes from 48GB, 512MiB or a number. Raises ConfigError."""
    if text is None or isinstance(text, int):
        return text
    try:
        return int(parse_bytes(text))
    except ValueError:
        raise ConfigError(f"memory {text!r} is no amount of memory; write it like 48GB or 512MiB.") from None


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


def register(
    fixed: Any = None,
    moving: Any = None,
    config: Config | str | Sequence[Stage] | Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    client: Client | None = None,
    cluster: str | None = None,
    spacing: Any = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **resources: Any,
) -> Result:
    """Find the transform that brings ``moving`` onto ``fixed``, and resample it there.

    fixed, moving: an address, a NumPy or Dask array (Z, Y, X), or a Volume (``open_volume(array, grid=...)``);
    config: a Config, stages, or a preset's name (``brain`` by default);  output: where RUN.zarr goes (a temporary place by default);
    client: a Dask client to use; else the current one; else a small cluster of our own;  cluster: a scheduler's address;
    resume: go on from the last checkpoint of an unfinished run at ``output``, which knows its images and recipe;
    resources: ``workers``, ``memory``, ``residency``, ``comm``, ``threads``, ``checkpoint``, ``retries``, ``deadline``, see Resources.
    The result is the same, bit for bit, whatever the resources, and whether it was resumed or not.

    The method is that of Jena et al., *A Scalable Distributed Framework for Multimodal GigaVoxel Image Registration*,
    arXiv 2509.25044. Raises InputError, OutputError, PlanTooLarge before anything is computed, RunError while it runs.
    """
    started, use = time.perf_counter(), as_resources(resources)
    store = resumed(output) if resume else None
    if store is not None:
        fixed, moving, config, fixed_mask, moving_mask, spacing = recalled(
            store, fixed, moving, config, fixed_mask, moving_mask, spacing
        )
    if fixed is None or moving is None:
        nothing = f"there is no run at {output} to resume; " if resume else ""
        raise ConfigError(f"{nothing}two images are needed: daskreg register FIXED MOVING -o RUN.zarr.")
    inputs = open_inputs(fixed, moving, config or "brain", fixed_mask, moving_mask, spacing)
    with existing(client, cluster) as there:
        workers = use.workers or (worker_count(there) if there else 1)
        memory = use.memory or worker_memory(there, workers)
        planned = inputs.plan(workers, memory, use.residency, use.fewest)
        start = initial_transform(planned)
        require_overlap(planned, start)
        planned.validate(memory)
        log.info("fixed %s, moving %s", voxels(planned.fixed), voxels(planned.moving))
        grids = inputs.fixed.grid, inputs.moving.grid.to_unit(inputs.fixed.grid.unit)
        if store is None:
            given = {"fixed": fixed, "moving": moving, "fixed_mask": fixed_mask, "moving_mask": moving_mask, "spacing": spacing}
            recipe = {**{k: _address(v) for k, v in given.items()}, "config": inputs.config.model_dump(mode="json")}
            path = _temporary() if output is None else output
            store = RunStore.create(path, fixed=grids[0], moving=grids[1], overwrite=overwrite, recipe=recipe)
        else:
            require_same(store, grids)

        def job(n: int) -> Job:
            cut = planned if n == workers else inputs.plan(n, memory, use.residency, use.fewest)
            given: dict[str, Any] = {"threads": use.threads, "checkpoint": use.checkpoint, "resume": resume, "trace": use.trace}
            return Job(cut, images[0], images[1], store.path, start, images[2], images[3], order=inputs.orders[0], **given)

        with (
            _kept_or_gone(store),
            nullcontext(there) if there else embedded(workers, use.threads) as seat,
            _staged(inputs, store.path, seat if there or workers > 1 else None) as reachable,
        ):
            images = reachable.cut()
            told = run_job(seat, job, workers, progress, comm=use.comm, retries=use.retries, deadline=use.deadline)
            report = merged(told, planned)
            built = time.perf_counter()
            with seat.as_current() if there or workers > 1 else dask.config.set(scheduler="threads"):
                build_pyramids(store)
            report["seconds"]["write"] += time.perf_counter() - built
            report["seconds"]["total"] = time.perf_counter() - started
            store.finish({**provenance(planned, inputs.fixed, inputs.moving), **report})
    return Result(RunStore.open(store.path))


def as_resources(given: Mapping[str, Any]) -> Resources:
    """Keyword arguments as Resources. Raises ConfigError naming an unknown one, and what cannot be."""
    known = [f.name for f in fields(Resources)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *_NAMED], 1, 0.5)
            raise ConfigError(f"register() has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    use = Resources(**{**given, "memory": parse_memory(given.get("memory"))})
    if use.workers is not None and use.workers < 1:
        raise ConfigError(f"workers is {use.workers}; at least 1 was expected.")
    if use.residency not in ("auto", *RESIDENCIES):
        raise ConfigError(f"residency is {use.residency!r}; auto, {', '.join(RESIDENCIES)} were expected.")
    return use


@contextmanager
def _kept_or_gone(store: RunStore) -> Iterator[None]:
    """A run that ends early keeps its last checkpoint, if there is one that another attempt can use; else nothing of it stays."""
    try:
        yield
    except (InputError, Diverged):
        store.abandon()
        raise
    except BaseException as error:
        if CheckpointStore(store.path).latest() is None:
            store.abandon()
        else:
            store.keep()
            error.add_note(f"What was reached is kept: continue with 'daskreg register --resume -o {store.path}'.")
        raise


@contextmanager
def _staged(inputs: Inputs, output: str, seat: Client | None) -> Iterator[Inputs]:
    """Inputs that workers in other processes can read: arrays in memory go, for the time being, to a folder beside the output."""
    given = [inputs.fixed, inputs.moving, *inputs.masks]
    if seat is None or is_remote(output) or not any(v is not None and v.format == "array" for v in given):
        yield inputs
        return
    with tempfile.TemporaryDirectory(prefix=".daskreg-inputs-", dir=Path(output).parent) as folder:
        there = [_stage(v, f"{folder}/{k}.ome.zarr", seat) for k, v in enumerate(given)]
        yield replace(inputs, fixed=there[0], moving=there[1], masks=(there[2], there[3]))


def _stage(volume: Volume | None, path: str, seat: Client) -> Volume | None:
    if volume is None or volume.format != "array":
        return volume
    with seat.as_current() if futures_of(volume.data) else dask.config.set(scheduler="threads"):
        write_image(path, volume.data, volume.grid)
    return replace(open_volume(path, grid=volume.grid), name=volume.name)


def resumed(output: str | Path | None) -> RunStore | None:
    """The unfinished run at ``output``; None where nothing is, so that a job that is started anew can say resume every time."""
    if output is None:
        raise ConfigError("resume needs the output of the run that is to go on; add -o RUN.zarr.")
    try:
        return RunStore.resume(output)
    except NotFound:
        log.info("nothing to resume at %s: starting", output)
        return None


def recalled(store: RunStore, *given: Any) -> list[Any]:
    """What the run was started with, where it is not given again. Raises ConfigError where another recipe is."""
    recipe = store.recipe
    names = ("fixed", "moving", "config", "fixed_mask", "moving_mask", "spacing")
    values = [recipe.get(name) if value is None else value for name, value in zip(names, given, strict=True)]
    if given[2] is not None and as_config(given[2]).model_dump(mode="json") != recipe.get("config"):
        raise ConfigError(f"{store.path} was started with another configuration; leave it out to go on, or use --overwrite.")
    if values[0] is None or values[1] is None:
        raise ConfigError(f"{store.path} was started from arrays in memory; give the two images again to go on.")
    return values


def require_same(store: RunStore, grids: tuple[Grid, Grid]) -> None:
    """Raises ConfigError when the images are not those of the run that is to go on."""
    for role, mine, its in (("fixed", grids[0], store.fixed_grid), ("moving", grids[1], store.moving_grid)):
        if mine != its:
            raise ConfigError(
                f"{store.path} was started with another {role} image ({its.shape}, not {mine.shape}); use --overwrite."
            )


def build_pyramids(store: RunStore) -> None:
    """Coarser levels of what the ranks wrote, a task a chunk."""
    for name in ("transform/displacement", "moved"):
        if store.has(name):
            store.build_pyramid(name)


def merged(told: Sequence[dict[str, Any]], planned: Plan) -> dict[str, Any]:
    """One report from those of all ranks: rank 0's, the slowest's seconds, the largest peak."""
    machines = [t["machine"] for t in told]
    seconds = {phase: max(t["seconds"].get(phase, 0.0) for t in told) for phase in told[0]["seconds"]}
    return {
        "levels": told[0]["levels"],
        "metrics": told[0]["metrics"],
        "seconds": seconds,
        "machine": {**machines[0], "peak_bytes": max(m["peak_bytes"] for m in machines)},
        "ranks": machines,
        "blocks": [[slab.start, slab.stop] for slab in planned.partition.slabs],
        "projected_bytes": planned.peak_bytes,
    }


def _address(source: Any) -> Any:
    """What can be written down of an input: its address."""
    return str(source) if isinstance(source, str | Path) else source if isinstance(source, int | float | list | tuple) else None


def _temporary() -> Path:
    """A place for a run that nobody named; it goes when the interpreter does."""
    folder = tempfile.mkdtemp(prefix="daskreg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "run.zarr"


def provenance(plan: Plan, fixed: Volume, moving: Volume) -> dict[str, Any]:
    """What is known before the run: configuration, inputs, versions."""
    return {
        "config": plan.config.model_dump(mode="json"),
        "inputs": {role: _described(v) for role, v in (("fixed", fixed), ("moving", moving))},
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def initial_transform(plan: Plan) -> NDArray[np.float64]:
    """(4, 4) world map that the first stage starts from: the identity, or what the configuration names."""
    path = plan.config.initial_transform
    if path is None:
        return np.eye(4)
    return RunStore.open(path).affine if ".zarr" in path else read_affine(path)


def require_overlap(plan: Plan, start: NDArray[np.float64]) -> None:
    """Raise NoOverlap when the headers put the images apart and no stage searches.

    Both are boxes along their own axes; they are compared by the boxes around them in the moving image's index space.
    """
    if any(isinstance(s, Search) for s in plan.config.stages):
        return
    corners = plan.moving.to_index(plan.fixed.corners() @ start[:3, :3].T + start[:3, 3])
    if (corners.max(axis=0) < 0).any() or (corners.min(axis=0) > np.asarray(plan.moving.shape) - 1).any():
        away = np.linalg.norm(plan.fixed.center - plan.moving.center)
        raise NoOverlap(
            f"the images do not overlap in space: their centres are {away:.6g} {plan.fixed.unit or 'units'} apart, their extents "
            f"{np.round(plan.fixed.extent, 2).tolist()} and {np.round(plan.moving.extent, 2).tolist()} (z, y, x); "
            "repair a header, give --initial-transform, or put a 'search' stage first."
        )


def _mask(given: Any, configured: str | None, image: Volume) -> Volume | None:
    mask = configured if given is None else given
    if mask is None:
        return None
    return open_volume(mask, grid=image.grid) if not isinstance(mask, str | Path) else open_volume(mask)


def _warn_orientation(fixed: Volume, moving: Volume) -> None:
    if fixed.grid.oriented != moving.grid.oriented:
        unsaid = moving if fixed.grid.oriented else fixed
        log.warning("%s does not say how its axes lie in space; taken as LPS, unlike the other image's header", unsaid.name)


def _described(volume: Volume) -> dict[str, Any]:
    grid: Grid = volume.grid
    return {"name": volume.name, "format": volume.format, "dtype": str(volume.dtype), "shape": grid.shape,
            "spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction, "unit": grid.unit}  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

"""``daskreg register``: two images in, a run out."""

from __future__ import annotations

import atexit
import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from numpy.typing import NDArray

from daskreg.cluster import (
    Job,
    device_of,
    embedded,
    estimated_bytes,
    existing,
    gpu_limit,
    gpu_workers,
    memory_limit,
    run_job,
    worker_count,
)
from daskreg.config import Config, Search, Stage
from daskreg.engine.report import Progress
from daskreg.errors import ConfigError, NoOverlap, OutputError
from daskreg.grid import Grid
from daskreg.kernels.device import Kind
from daskreg.lazy.begin import Beginning
from daskreg.planning import Plan, format_grid
from daskreg.storage import RunStore, Volume
from daskreg.storage.fs.atomic import require_distinct
from daskreg.storage.registry import image_formats
from daskreg.storage.runs.run import DISPLACEMENT, MOVED
from daskreg.workflows.inputs import Inputs, address_of, open_inputs, staged
from daskreg.workflows.resources import Resources, as_resources, parse_memory
from daskreg.workflows.resume import kept_or_gone, recalled, require_same, resumed

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.cluster import Client

log = logging.getLogger("daskreg")
GIVEN = "as asked for"  # in place of what limits memory
LOCAL = (None, "local", "cuda")  # clusters of our own; cuda: a worker for each GPU
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
        return self.store.displacement() if self.store.has(DISPLACEMENT) else None

    @property
    def report(self) -> dict[str, Any]:
        """Configuration, versions, inputs, losses and times."""
        return self.store.provenance


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
    inputs = open_inputs(fixed, moving, config, fixed_mask, moving_mask, spacing)
    found = inputs.plan(workers, limit, residency, process=estimated_bytes(None, workers))
    if limit is not None:
        found.validate(limit, GIVEN)
    return found


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
    config: a Config, stages, or a preset's name (``brain`` by default);  output: where RUN.zarr goes (else a temporary place);
    client: a Dask client to use; else the current one; else a small cluster of our own;  cluster: a scheduler's address, or
    "cuda": a worker for each GPU here; resume: go on from the last checkpoint of an unfinished run at ``output``, which knows
    its images and recipe; resources: workers, memory, residency, comm, threads, checkpoint, retries, deadline: see ``Resources``.
    The result is the same, bit for bit, whatever the resources, and whether it was resumed or not.

    The method is that of Jena et al., *A Scalable Distributed Framework for Multimodal GigaVoxel Image Registration*,
    arXiv 2509.25044. Raises InputError, OutputError, PlanTooLarge before anything is computed, RunError while it runs.
    """
    started, use = time.perf_counter(), as_resources(resources)
    store = resumed(output) if resume else None
    if store is not None:
        given = recalled(store, fixed, moving, config, fixed_mask, moving_mask, spacing)
        fixed, moving, config, fixed_mask, moving_mask, spacing = given
    if fixed is None or moving is None:
        nothing = f"there is no run at {output} to resume; " if resume else ""
        raise ConfigError(f"{nothing}two images are needed: daskreg register FIXED MOVING -o RUN.zarr.")
    asked = open_inputs(fixed, moving, config or "brain", fixed_mask, moving_mask, spacing)
    with existing(client, None if cluster in LOCAL else cluster) as there:
        use, limited_by = _settled(use, there, cluster)
        inputs = _able(asked, use)
        planned = _checked_plan(inputs, use, estimated_bytes(there, use.count, _kind(use)), limited_by)
        if store is None:
            addresses = {
                "fixed": fixed,
                "moving": moving,
                "fixed_mask": fixed_mask,
                "moving_mask": moving_mask,
                "spacing": spacing,
            }
            store = _new_store(output, asked, {k: address_of(v) for k, v in addresses.items()}, overwrite)
        else:
            require_same(store, inputs.grids)
        with kept_or_gone(store), nullcontext(there) if there else embedded(use.count, use.threads, _kind(use)) as seat:
            apart = there is not None or use.count > 1
            report = _run(inputs, planned, store, use, seat, resume, progress, apart)
            report["seconds"]["total"] = time.perf_counter() - started
            store.finish({**provenance(planned, inputs.fixed, inputs.moving), **report})
    return Result(RunStore.open(store.path))


def _settled(use: Resources, there: Client | None, cluster: str | None) -> tuple[Resources, str]:
    """With the device, the workers and their memory filled in; what limits the memory."""
    if cluster == "cuda" and use.device == "cpu":
        raise ConfigError("--cluster cuda has a worker for each GPU and --device is cpu; leave one of them out.")
    usual = worker_count(there) if there else gpu_workers() if cluster == "cuda" else 1  # before any worker is asked: it waits
    kind = device_of(there, "cuda" if cluster == "cuda" else use.device, use.workers or usual)
    use = replace(use, device=kind, workers=use.workers or usual)
    if use.memory is not None:
        return use, GIVEN
    limit = gpu_limit(there) if kind == "cuda" else memory_limit(there, use.count)
    return replace(use, memory=limit.value), limit.source


def _able(inputs: Inputs, use: Resources) -> Inputs:
    """The same, in a storage that the device has: a recipe runs anywhere, and the run says what it did."""
    if _kind(use) == "cuda" or inputs.config.in_float32 == inputs.config:
        return inputs
    log.warning("storage: mixed is for GPUs; on processors the run goes on in float32.")
    return replace(inputs, config=inputs.config.in_float32)


def _kind(use: Resources) -> Kind:
    """The device, once settled."""
    return "cuda" if use.device == "cuda" else "cpu"


def _checked_plan(inputs: Inputs, use: Resources, process: int, limited_by: str) -> Plan:
    """The plan, once it is clear that it fits and that the images meet."""
    planned = inputs.plan(use.count, use.memory, use.residency, use.fewest, process)
    require_overlap(planned, first_affine(inputs))
    assert use.memory is not None
    planned.validate(use.memory, limited_by)
    log.info("fixed %s, moving %s", format_grid(planned.fixed), format_grid(planned.moving))
    return planned


def _new_store(output: str | Path | None, inputs: Inputs, recipe: dict[str, Any], overwrite: bool) -> RunStore:
    path = _temporary() if output is None else output
    if any(f.single_file for f in image_formats.by_ending(str(path))):
        raise OutputError(f"{path}: a run is a Zarr store; name it .zarr, and 'daskreg export' makes a field of it.")
    told = inputs.config
    require_distinct(path, *recipe.values(), told.fixed_mask, told.moving_mask, told.initial_transform)
    recipe = {**recipe, "config": inputs.config.model_dump(mode="json")}
    fixed, moving = inputs.grids
    return RunStore.create(path, fixed=fixed, moving=moving, overwrite=overwrite, recipe=recipe)


def _run(
    inputs: Inputs,
    planned: Plan,
    store: RunStore,
    use: Resources,
    seat: Client,
    resume: bool,
    progress: Callable[[Progress], None] | None,
    apart: bool,
) -> dict[str, Any]:
    """All ranks, then the pyramids; what they report. apart: whether workers live in other processes."""
    with staged(inputs, store.path, seat if apart else None) as reachable:
        fixed, moving, *masks = reachable.cut()
        begin = None if inputs.start is None or inputs.start.is_affine else Beginning(inputs.start)

        def job(n: int) -> Job:
            cut = planned if n == use.count else inputs.plan(n, use.memory, use.residency, use.fewest, planned.process)
            start, order = first_affine(inputs), inputs.orders[0]
            options: dict[str, Any] = {"threads": use.threads, "checkpoint": use.checkpoint, "resume": resume, "trace": use.trace,
                                       "device": _kind(use)}  # fmt: skip
            return Job(cut, fixed, moving, store.path, start, masks[0], masks[1], order=order, begin=begin, **options)

        told = run_job(seat, job, use.count, progress, comm=use.comm, retries=use.retries, deadline=use.deadline)
    report, built = merged(told), time.perf_counter()
    with seat.as_current() if apart else dask.config.set(scheduler="threads"):
        build_pyramids(store)
    report["seconds"]["write"] += time.perf_counter() - built
    return report


def build_pyramids(store: RunStore) -> None:
    """Coarser levels of what the ranks wrote, a task a chunk."""
    for name in (DISPLACEMENT, MOVED):
        if store.has(name):
            store.build_pyramid(name)


def merged(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report from those of all ranks: rank 0's, the slowest's seconds, the largest peak."""
    machines = [t["machine"] for t in told]
    seconds = {phase: max(t["seconds"].get(phase, 0.0) for t in told) for phase in told[0]["seconds"]}
    return {
        "levels": told[0]["levels"],
        "metrics": told[0]["metrics"],
        "seconds": seconds,
        "machine": {**machines[0], "peak_bytes": max(m["peak_bytes"] for m in machines)},
        "projected_bytes": max(m["projected_bytes"] for m in machines),
        "ranks": machines,
        **told[0]["plan"],
    }


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


def first_affine(inputs: Inputs) -> NDArray[np.float64]:
    """(4, 4) world map that the first stage starts from: the identity, or the affine part of the initial transform."""
    return np.eye(4) if inputs.start is None else inputs.start.affine


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


def _described(volume: Volume) -> dict[str, Any]:
    grid: Grid = volume.grid
    return {"name": volume.name, "format": volume.format, "dtype": str(volume.dtype), "shape": grid.shape,
            "spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction, "unit": grid.unit}  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

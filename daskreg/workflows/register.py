"""``daskreg register``: two images in, a run out."""

from __future__ import annotations

import atexit
import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from daskreg.cluster import Job, run_job, session
from daskreg.config import Config, Search, Stage
from daskreg.engine.report import Progress
from daskreg.errors import NoOverlap
from daskreg.grid import Grid
from daskreg.planning import Plan, make_plan, voxels
from daskreg.storage import RunStore, Volume, open_volume, read_affine
from daskreg.workflows.presets import preset

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.cluster import Client

log = logging.getLogger("daskreg")
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


def prepare(
    fixed: Any, moving: Any, config: Config | str | Sequence[Stage] | Mapping[str, Any], *, spacing: Any = None
) -> tuple[Volume, Volume, Plan]:
    """Open both images and plan the run; nothing is read yet. Raises InputError in all its forms."""
    chosen = as_config(config)
    volumes = open_volume(fixed, spacing=spacing_for(fixed, spacing)), open_volume(moving, spacing=spacing_for(moving, spacing))
    masks = sum(mask is not None for mask in (chosen.fixed_mask, chosen.moving_mask))
    planned = make_plan(volumes[0].grid, volumes[1].grid, chosen, masks)
    _warn_orientation(*volumes)
    return *volumes, planned


def plan(
    fixed: Any, moving: Any, config: Config | str | Sequence[Stage] | Mapping[str, Any] = "brain", *, spacing: Any = None
) -> Plan:
    """Levels, grids and memory of a registration that is not run; its ``lines()`` are for people."""
    return prepare(fixed, moving, config, spacing=spacing)[2]


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
    fixed: Any,
    moving: Any,
    config: Config | str | Sequence[Stage] | Mapping[str, Any] = "brain",
    *,
    output: str | Path | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    client: Client | None = None,
    cluster: str | None = None,
    threads: int | None = None,
    spacing: Any = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Find the transform that brings ``moving`` onto ``fixed``, and resample it there.

    fixed, moving: an address, a NumPy or Dask array (Z, Y, X), or a Volume (``open_volume(array, grid=...)``);
    config: a Config, stages, or a preset's name;  output: where RUN.zarr goes (a temporary place by default);
    client: a Dask client to use; else the current one; else a small cluster in this process;  cluster: a scheduler's address.

    The method is that of Jena et al., *A Scalable Distributed Framework for Multimodal GigaVoxel Image Registration*,
    arXiv 2509.25044. Raises InputError, OutputError, PlanTooLarge before anything is computed, RunError while it runs.
    """
    started = time.perf_counter()
    volume, other, plan = prepare(fixed, moving, config, spacing=spacing)
    masks = _mask(fixed_mask, plan.config.fixed_mask, volume), _mask(moving_mask, plan.config.moving_mask, other)
    plan = replace(plan, masks=sum(mask is not None for mask in masks))
    start = initial_transform(plan)
    require_overlap(plan, start)
    plan.validate(psutil.virtual_memory().total)
    path = _temporary() if output is None else output
    log.info("fixed %s, moving %s", voxels(plan.fixed), voxels(plan.moving))
    store = RunStore.create(path, fixed=plan.fixed, moving=plan.moving, overwrite=overwrite)
    try:
        job = Job(plan, volume, other, store.path, start, masks[0], masks[1], threads)
        with session(client, cluster, threads) as there:
            told = run_job(there, job, progress)
        told["seconds"]["total"] = time.perf_counter() - started
        store.finish({**provenance(plan, volume, other), **told})
    except BaseException:
        store.abandon()
        raise
    return Result(RunStore.open(store.path))


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

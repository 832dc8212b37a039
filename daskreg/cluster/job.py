"""What one worker does: read, run the rank, write. The only place where the engine meets paths."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Alone, Communicator
from daskreg.config import Config
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.engine.measure import folding, likeness
from daskreg.engine.rank import Rank, resample
from daskreg.engine.report import Outcome, Watch
from daskreg.errors import InputError
from daskreg.grid import Grid, Region
from daskreg.kernels.launch import threads, use_threads
from daskreg.planning import Plan
from daskreg.storage import RunStore, Volume

DISPLACEMENT = "transform/displacement"


@dataclass(frozen=True)
class Job:
    """A plan with its sources and the run that receives the result."""

    plan: Plan
    fixed: Volume
    moving: Volume
    output: str
    start: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    threads: int | None = None


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> None:
        """The time since the last call went into ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def execute(job: Job, watch: Watch) -> dict[str, Any]:
    """The whole run of one rank; returns its part of the provenance."""
    use_threads(job.threads or len(os.sched_getaffinity(0)))
    clock, comm = Clock(), Alone()
    images = read_images(job, comm)
    clock.phase("read")
    outcome = Rank(job.plan, images, job.start, comm, watch).run()
    clock.phase("optimise")
    metrics = {"before": likeness(job.plan, Outcome(job.start, None, []), images)}
    metrics["after"] = likeness(job.plan, outcome, images)
    if outcome.displacement is not None:
        metrics["jacobian"] = folding(outcome.displacement)
    clock.phase("measure")
    del images
    write_result(job, outcome)
    clock.phase("write")
    levels = [report.as_dict() for report in outcome.levels]
    return {"levels": levels, "metrics": metrics, "seconds": clock.seconds, "machine": machine()}


def read_images(job: Job, comm: Communicator) -> tuple[Image, Image]:
    """Both images scaled to [0, 1], with their masks. Raises VoxelError."""
    fixed = _read(job.fixed, job.fixed_mask, job.plan.fixed, job.plan.config, comm, "the fixed image")
    moving = _read(job.moving, job.moving_mask, job.plan.moving, job.plan.config, comm, "the moving image")
    return fixed, moving


def _read(volume: Volume, mask: Volume | None, grid: Grid, config: Config, comm: Communicator, role: str) -> Image:
    voxels = volume.read()
    normalise(voxels, config, comm, f"{role} {volume.name}")
    if mask is None:
        return Image(voxels, grid)
    if mask.shape != volume.shape:
        raise InputError(
            f"the mask {mask.name} has shape {mask.shape}, {role} {volume.shape}; make the mask on the image's grid."
        )
    return Image(voxels, grid, check_mask(mask.read(), f"the mask {mask.name}"))


def write_result(job: Job, outcome: Outcome) -> None:
    """Affine, displacement in world units and the moved image, chunk by chunk, then their pyramids."""
    store = RunStore.attach(job.output)
    store.set_affine(outcome.affine)
    if outcome.displacement is not None:
        grid = job.plan.fixed
        store.create_image(DISPLACEMENT, grid, np.float32, components=3)
        to_world = (np.asarray(grid.direction) * np.asarray(grid.spacing)).astype(np.float32)
        for slab in _slabs(store, DISPLACEMENT, grid):
            u = outcome.displacement[(slice(None), *slab.slices)]
            store.write(DISPLACEMENT, slab, np.tensordot(to_world, u, 1).astype(np.float32, copy=False))
        store.build_pyramid(DISPLACEMENT)
    dtype = job.moving.dtype if job.moving.dtype != np.bool_ else np.dtype(np.float32)
    moved = resample(job.plan, outcome, job.moving.read())
    outcome.displacement = None
    store.create_image("moved", job.plan.fixed, dtype)
    for slab in _slabs(store, "moved", job.plan.fixed):
        store.write("moved", slab, as_type(moved[slab.slices], dtype))
    store.build_pyramid("moved")


def _slabs(store: RunStore, name: str, grid: Grid) -> list[Region]:
    step, (nz, ny, nx) = store.chunk(name)[0], grid.shape
    return [Region((z, 0, 0), (min(z + step, nz), ny, nx)) for z in range(0, nz, step)]


def as_type(voxels: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """In the stored type: integers rounded and kept in range."""
    if not np.issubdtype(dtype, np.integer):
        return voxels.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(voxels.astype(np.float64)), limits.min, limits.max).astype(dtype)


def peak_bytes() -> int:
    """Most memory this process has held; Linux's own mark, since ``ru_maxrss`` there begins with the parent's."""
    try:
        marks = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(marks["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """Where it ran, and how much memory the process took at most."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": threads(),
        "peak_bytes": peak_bytes(),
    }

"""Whether a run fits where it is to run: its plan on the workers that it has, or on those that it will have."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from daskreg.config import Search
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, NoOverlap, all_of
from daskreg.lazy.load import load_transform
from daskreg.machine import Limit
from daskreg.planning import SOURCE, Plan, format_grid
from daskreg.planning.source import source_passes
from daskreg.storage.runs.place import require_new
from daskreg.workflows.inputs import Inputs, Request
from daskreg.workflows.resources import GIVEN, Allocation, Resources

if TYPE_CHECKING:
    from daskreg import cluster as clusters
else:
    clusters = DeferredModule("daskreg.cluster")

log = logging.getLogger("daskreg")


def open_foreseen(system: str, resources: Resources, request: Request, path: str, *, new: bool) -> Inputs:
    """The inputs of a run whose workers are jobs; refuses all that would be refused once they run, as far as it is known."""
    inputs, *_ = all_of(
        partial(_planned_for_jobs, system, resources, request),
        partial(require_new, path, overwrite=not new),
        partial(clusters.require_batch_system, system),
    )
    return cast("Inputs", inputs)


def _planned_for_jobs(system: str, resources: Resources, request: Request) -> Inputs:
    inputs = request.open()
    memory = None if resources.device == "cuda" else clusters.job_memory(system)
    if memory is not None:
        limit, workers = Limit(resources.memory, GIVEN) if resources.memory else memory, resources.workers or 1
        process = clusters.estimated_bytes(None, workers, elsewhere=True)
        use = Allocation(workers, "cpu", limit, process, resources)
        _checked(plan_on(replace(inputs, config=inputs.config.without_storage("mixed")), use, workers), inputs, limit)
    return inputs


def plan_on(inputs: Inputs, use: Allocation, workers: int) -> Plan:
    """The plan for so many workers with these resources."""
    asked = use.options
    given = use.process, asked.state, use.host, asked.images, asked.scratch_size
    return inputs.plan(workers, use.memory.value, asked.residency, asked.minimum_planes, *given)


def fitting_plan(inputs: Inputs, use: Allocation) -> Plan:
    """The plan, checked: it fits into the memory, and the images overlap."""
    planned = _checked(plan_on(inputs, use, use.workers), inputs, use.memory)
    _require_ring_in_memory(planned, use.options)
    _tell_passes(planned, first_affine(inputs))
    log.info("fixed %s, moving %s", *map(format_grid, inputs.grids))
    return planned


def _checked(planned: Plan, inputs: Inputs, memory: Limit) -> Plan:
    require_overlap(planned, inputs)
    planned.validate(memory.value, memory.source)
    return planned


def _require_ring_in_memory(planned: Plan, asked: Resources) -> None:
    """Raises ConfigError for a ring and fields elsewhere."""
    if asked.residency == "ring" and asked.state in ("host", "disk"):
        raise ConfigError(
            f"--residency ring goes with fields on the device, and --state is {asked.state}; use --residency window, or auto."
        )
    if planned.state != "device":
        log.info("fields are kept %s and swept slab by slab", "on disk" if planned.state == "disk" else "in the machine's memory")


def _tell_passes(planned: Plan, start: NDArray[np.float64]) -> None:
    """How often images in their files are decoded."""
    if planned.images == SOURCE:
        times = (source_passes(planned, role, start)[1] for role in (0, 1))
        log.info("images stay in their files: fixed is decoded %.3g times, moving %.3g times", *times)


def first_affine(inputs: Inputs) -> NDArray[np.float64]:
    """(4, 4) world map that the first stage starts from: the identity, or the affine part of the initial transform."""
    return np.eye(4) if inputs.start is None else inputs.start.affine


def require_overlap(plan: Plan, inputs: Inputs) -> None:
    """Raise NoOverlap when the headers, and the initial transform, put the images apart and no stage searches.

    Both are boxes along their own axes; they are compared by the boxes around them in the moving image's index space.
    """
    start = first_affine(inputs)
    if any(isinstance(s, Search) for s in plan.config.stages) or not _apart(plan, start):
        return
    fixed, moving = inputs.grids  # the plan's may have their axes in another order
    center = start[:3, :3] @ fixed.center + start[:3, 3]
    where = (
        f"their centres are {np.linalg.norm(center - moving.center):.6g} {fixed.unit or 'units'} apart, their extents "
        f"{np.round(fixed.extent, 2).tolist()} and {np.round(moving.extent, 2).tolist()} (z, y, x)"
    )
    if inputs.start is None:
        remedy = "repair a header, give --initial-transform, or put a 'search' stage first."
        raise NoOverlap(f"the images do not overlap in space: {where}; {remedy}")
    name, without = inputs.config.initial_transform, "" if _apart(plan, np.eye(4)) else "; without it they overlap"
    raise NoOverlap(
        f"the images do not overlap in space through {name}: {where}{without}. {_of_start(str(name), plan.fixed.unit)}"
    )


def _apart(plan: Plan, start: NDArray[np.float64]) -> bool:
    corners = plan.moving.to_index(plan.fixed.corners() @ start[:3, :3].T + start[:3, 3])
    return bool((corners.max(axis=0) < 0).any() or (corners.min(axis=0) > np.asarray(plan.moving.shape) - 1).any())


def _of_start(name: str, unit: str | None) -> str:
    """What may be wrong with an initial transform under which the images do not overlap. unit: of the images"""
    stated = load_transform(name).unit
    other = unit if unit != stated else "mm"
    taken = f"It is taken in {stated}; if its numbers are in {other}, write {name}::unit={other}. " if stated else ""
    return f"{taken}It maps points of the fixed to points of the moving image; where it was made the other way round, invert it."

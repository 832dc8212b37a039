"""``daskreg plan``: what a registration would need, without running it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from daskreg.arguments import checked_arguments
from daskreg.config import DeviceName
from daskreg.deferred import DeferredModule
from daskreg.lazy.load import FinishedRun
from daskreg.planning import Plan
from daskreg.planning.table import duration
from daskreg.workflows.fitting import require_overlap
from daskreg.workflows.inputs import ConfigLike, ImageLike, Request, Spacing
from daskreg.workflows.resources import GIVEN, Images, Residency, Resources, State, host_limit, parse_memory

if TYPE_CHECKING:
    from daskreg import cluster as clusters
else:
    clusters = DeferredModule("daskreg.cluster")

SECONDS_A_KERNEL = 0.9  # of a core, as the summaries of first runs say


@checked_arguments(preset="config")
def plan(
    fixed: ImageLike,
    moving: ImageLike,
    config: ConfigLike = "brain",
    *,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    initial_transform: str | Path | FinishedRun | None = None,
    spacing: Spacing = None,
    workers: int = 1,
    device: DeviceName = "auto",
    memory: int | str | None = None,
    residency: Residency = "auto",
    state: State = "auto",
    images: Images = "auto",
    host_memory: int | str | None = None,
) -> Plan:
    """Levels, blocks, memory, communication and time of a registration that is not run; ``print(plan)`` is a table.

    Parameters are those of ``register``. No voxel is read.

    device: whose speed and precision are assumed; ``cuda`` stands for a GPU like an H200 and needs none here; ``auto`` for what
    ``register`` would take on this machine;  memory: bytes a worker may use, or text such as "48GB"; None: no limit.
    Raises InputError in all its forms, and PlanTooLarge where the run does not fit into the memory.
    """
    use = Resources(workers=workers, device=device, memory=parse_memory(memory), residency=residency, state=state,
                    images=images, host_memory=parse_memory(host_memory))  # fmt: skip
    inputs = Request(fixed, moving, config, fixed_mask, moving_mask, spacing, initial_transform).open()
    kind = "cuda" if use.device == "cuda" else clusters.device_of(None, use.device, workers)
    process = clusters.estimated_bytes(None, workers, kind)
    host = host_limit(use, None, workers) if kind == "cuda" else None
    planned = inputs.for_device(kind).plan(workers, use.memory, use.residency, process=process, state=use.state, host=host,
                                             images=use.images)  # fmt: skip
    require_overlap(planned, inputs)
    if use.memory is not None:
        planned.validate(use.memory, GIVEN)
    return replace(planned, device=kind)


def time_of_first_run(planned: Plan) -> str:
    """A line about kernels that a run compiles first on this machine; empty where it has compiled them all."""
    kernels = clusters.kernels_to_compile(planned)
    seconds = duration(SECONDS_A_KERNEL * kernels)
    return f"first run: compiles about {kernels} kernels too, once on this machine, {seconds} of a core" if kernels else ""


def link_between_workers(planned: Plan) -> str:
    """A line about how workers on this machine would communicate; empty for one worker."""
    return f"link between workers on this machine: {clusters.local_link(planned.device)}" if planned.workers > 1 else ""


def require_local_memory(planned: Plan) -> None:
    """Raise PlanTooLarge where worker processes of this machine, container or job have less memory than a plan for CPUs needs."""
    if planned.device == "cpu" and planned.memory is None:
        limit = clusters.memory_limit(None, planned.workers)
        planned.validate(limit.value, limit.source)

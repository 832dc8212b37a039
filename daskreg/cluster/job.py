"""What one worker does: read its part, run the rank, write its part. The only place where the engine meets paths."""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg import machine
from daskreg.cluster.output import write_result
from daskreg.cluster.process_size import running_bytes, start_bytes
from daskreg.comm import Communicator
from daskreg.config import Config
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.engine.measure import folding, likeness
from daskreg.engine.memory import trim
from daskreg.engine.rank import InitialDisplacement, Rank, RunState
from daskreg.engine.report import Outcome, Watch
from daskreg.errors import InputError
from daskreg.grid import Grid, Index, Partition, Span
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.launch import threads, use_threads
from daskreg.kernels.device import CPU, Device, Kind, host
from daskreg.planning import Plan
from daskreg.storage import CheckpointStore, Volume

PLANES = 64  # read at a time on the way to a GPU


@dataclass(frozen=True)
class Job:
    """A plan with its sources and the run that receives the result.

    checkpoint: seconds between two checkpoints, None for none;  resume: go on from the last one;  trace: keep a timeline of
    the ring;  order: axes of the fixed image as it is stored, in the order in which the plan and the volumes have them;
    device: where kernels run, the first GPU that the worker sees;  begin: the displacement to start from.
    """

    plan: Plan
    fixed: Volume
    moving: Volume
    output: str
    start: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    threads: int | None = None
    checkpoint: float | None = 180.0
    resume: bool = False
    trace: bool = False
    order: Index = (0, 1, 2)
    device: Kind = "cpu"
    begin: InitialDisplacement | None = None


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


def execute(job: Job, comm: Communicator, watch: Watch, cores: int) -> dict[str, Any]:
    """The whole run of one rank on ``cores`` threads; returns its part of the provenance."""
    use_threads(job.threads or cores)
    device = Device(job.device)
    device.use()
    if device.kind == "cuda":
        precompile.start_helpers(device.memory - job.plan.peak_bytes)
    memory = memory_record(job)
    clock, timeline = Clock(), list[tuple[str, float, float]]()
    images = read_images(job, comm)
    trim()  # of the chunks that were unpacked
    clock.phase("read")
    keeper = Keeper(job, comm)
    rank = Rank(job.plan, images, job.start, comm, watch, keeper.save if job.checkpoint is not None else None,
                (lambda *event: timeline.append(event)) if job.trace else None, job.begin)  # fmt: skip
    if job.resume:
        keeper.restore(rank)
    outcome = rank.run()
    del rank
    clock.phase("optimise")
    metrics = measure(job, outcome, images, comm)
    clock.phase("measure")
    del images
    write_result(job.output, job.plan, job.order, job.moving, outcome, comm)
    clock.phase("write")
    levels = [report.as_dict() for report in outcome.levels]
    here = {**describe_machine(device), **memory, "traffic": dict(comm.traffic), "timeline": timeline}
    blocks = [[slab.start, slab.stop] for slab in job.plan.partition.slabs]
    plan = {"blocks": blocks, "planned_bytes": job.plan.peak_bytes}
    return {"levels": levels, "metrics": metrics, "seconds": clock.seconds, "machine": here, "plan": plan}


def memory_record(job: Job) -> dict[str, int]:
    """What this process has in RAM before it allocates, and its projected peak: from that on a CPU, the plan's on a GPU."""
    if job.device == "cuda":
        return {"start_bytes": machine.resident_bytes(), "projected_bytes": job.plan.peak_bytes}
    start = start_bytes()
    projected = replace(job.plan, process=running_bytes(start)).peak_bytes
    earlier = machine.peak_bytes()  # of a run before, or of the caller's work in this process
    return {"start_bytes": start, "projected_bytes": max(projected, earlier)}


def measure(job: Job, outcome: Outcome, images: tuple[Image, Image], comm: Communicator) -> dict[str, Any]:
    """How alike the images were and are, and how space is stretched."""
    block = replace(outcome.block, halo=0)
    metrics: dict[str, Any] = {"before": likeness(job.plan, Outcome(job.start, None, [], block), images, comm)}
    metrics["after"] = likeness(job.plan, outcome, images, comm)
    if outcome.displacement is not None:
        metrics["jacobian"] = folding(outcome.displacement, outcome.block, comm)
    return metrics


class Keeper:
    """Between a rank and the checkpoints of its run: each rank writes its own planes, rank 0 says when all of them have."""

    def __init__(self, job: Job, comm: Communicator) -> None:
        self.comm, self.store, self.number = comm, CheckpointStore(job.output), 0

    def save(self, state: RunState, fields: Mapping[str, tuple[Span, NDArray[np.float32]]], shape: Index | None) -> None:
        """A whole checkpoint, or none: it counts from its commit on."""
        self.number += 1
        if self.comm.rank == 0:
            self.store.begin(self.number, dict.fromkeys(fields, (3, *shape)) if shape else {})
        self.comm.barrier()
        for name, (own, planes) in fields.items():
            if len(own):
                self.store.write(self.number, name, own.start, host(planes))  # one field at a time leaves a GPU
        self.comm.barrier()
        if self.comm.rank == 0:
            self.store.commit(self.number, asdict(state))

    def restore(self, rank: Rank) -> None:
        """Set a rank to the last checkpoint; nothing where there is none."""
        found = self.store.latest()
        if found is None:
            return
        self.number, state = found
        fields = tuple(state["fields"]) if state["fields"] else None
        rank.resume(RunState(**{**state, "fields": fields}), lambda name, span: self.store.read(self.number, name, span))


def read_images(job: Job, comm: Communicator) -> tuple[Image, Image]:
    """This rank's planes of both images scaled to [0, 1], with their masks. Raises VoxelError."""
    plan = job.plan
    fixed = _read(job.fixed, job.fixed_mask, plan.fixed, plan.partition, plan.rims[0], plan.config, comm, "the fixed image",
                  job.device)  # fmt: skip
    moving = _read(job.moving, job.moving_mask, plan.moving, plan.shards, plan.rims[1], plan.config, comm, "the moving image",
                   job.device)  # fmt: skip
    return fixed, moving


def _read(
    volume: Volume, mask: Volume | None, grid: Grid, partition: Partition, rim: int, config: Config, comm: Communicator, role:
    str, device: Kind,
) -> Image:  # fmt: skip
    held, own = partition.around(comm.rank, rim), partition[comm.rank]
    voxels = _loaded(volume, held, Device(device))
    normalise(voxels, config, comm, f"{role} {volume.name}", own.within(held))
    image = Image(voxels, grid, partition, held, None, comm.rank, rim)
    if mask is None:
        return image
    if mask.shape != volume.shape:
        raise InputError(
            f"the mask {mask.name} has shape {mask.shape}, {role} {volume.shape}; make the mask on the image's grid."
        )
    image.mask = check_mask(_loaded(mask, held, Device(device)), f"the mask {mask.name}", comm)
    return image


def _loaded(volume: Volume, planes: Span, device: Device) -> NDArray[np.float32]:
    """Planes of a volume, float32; to a GPU they go some at a time, so that the machine's memory never holds them all."""
    if device.kind == "cpu":
        return volume.planes(planes)
    voxels: NDArray[np.float32] = device.xp.empty((len(planes), *volume.shape[1:]), np.float32)
    for part, found in _ahead(volume.planes, planes):
        voxels[part.within(planes)] = device.put(found)
    return voxels


def _ahead(read: Callable[[Span], NDArray[np.float32]], planes: Span) -> Iterator[tuple[Span, NDArray[np.float32]]]:
    """Some planes at a time, the next ones read while these are in use."""
    parts = [Span(z, min(z + PLANES, planes.stop)) for z in range(planes.start, planes.stop, PLANES)]
    with ThreadPoolExecutor(1, "daskreg-input") as reader:
        coming = [reader.submit(read, part) for part in parts[:1]]
        for part, following in zip_longest(parts, parts[1:]):
            found = coming.pop().result()
            coming = [reader.submit(read, following)] if following else []
            yield part, found


def describe_machine(device: Device = CPU) -> dict[str, Any]:
    """Where it ran, and how much memory the process took at most, the GPU's apart."""
    gpu = {"gpu": device.name, "gpu_peak_bytes": device.mark()} if device.kind == "cuda" else {}
    return gpu | {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": threads(),
        "peak_bytes": machine.peak_bytes(),
    }

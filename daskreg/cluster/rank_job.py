"""What a rank does from its first stage to its last: read its planes, run the stages, write its part of the result.

The only place where the engine meets paths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.cluster.checkpointer import Checkpointer
from daskreg.cluster.image_reader import read_images
from daskreg.cluster.kept_checkpointer import KeptCheckpointer, kept_reader
from daskreg.cluster.machine_record import machine_record, memory_record
from daskreg.cluster.result_writer import write_result
from daskreg.comm import Communicator
from daskreg.engine import source_measure
from daskreg.engine.background import Background
from daskreg.engine.coarse_pair import CoarsePair, coarse_pair
from daskreg.engine.evidence import gather_evidence
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.masks import mask_counts
from daskreg.engine.match_map import MatchMap
from daskreg.engine.measure import folding, likeness
from daskreg.engine.memory import return_large_arrays, reuse_freed_arrays, trim
from daskreg.engine.planes import ComputedPlanes, allocator
from daskreg.engine.rank import Rank, StartingDisplacement
from daskreg.engine.report import Outcome, Watch
from daskreg.engine.source_images import SourceImage
from daskreg.engine.upsampled import UpsampledField
from daskreg.engine.verdict import judge
from daskreg.errors import ConfigError
from daskreg.grid import Index
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.host_launch import set_thread_count, thread_count
from daskreg.kernels.device import Device, Kind
from daskreg.planning import SOURCE, Plan
from daskreg.storage import Volume
from daskreg.storage.scratch import ScratchFolder


@dataclass(frozen=True)
class RankJob:
    """A plan, its input volumes, and the run that receives the result.

    checkpoint: seconds between two checkpoints, None for none;  resume: go on from the last one;  trace: record a timeline of
    the ring;  order: axes of the fixed image as it is stored, in the order in which the plan and the volumes have them;
    device: where kernels run, on a GPU worker the first GPU that it sees;  begin: the displacement to start from;
    backgrounds: stored voxels of the fixed and the moving image that stand for nothing;
    attempt: of the process that the ranks work for, see ``RunStore``;  scratch, scratch_size: folder for fields on disk, and
    bytes of it that a rank may use;  spent: seconds that the run has taken so far.
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
    begin: StartingDisplacement | None = None
    backgrounds: tuple[Background | None, Background | None] = (None, None)
    attempt: str = ""
    scratch: str | None = None
    scratch_size: int | None = None
    spent: float = 0.0

    def as_stored(self, level: Mapping[str, Any]) -> dict[str, Any]:
        """A report of a level with its shape in the order of the stored fixed image."""
        return {**level, "shape": tuple(level["shape"][self.order.index(axis)] for axis in range(3))}


@dataclass
class PhaseTimer:
    """Seconds spent in each phase of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def end_phase(self, name: str) -> None:
        """Add the time since the last call to ``name``."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def run_rank(job: RankJob, comm: Communicator, watch: Watch, device: Device) -> dict[str, Any]:
    """Run one rank from reading to writing, on the device that ``use_device`` has set; returns its part of the provenance."""
    if (job.plan.state, job.plan.images) != ("device", "device"):
        return_large_arrays()
    else:
        reuse_freed_arrays()
    memory = memory_record(job.plan, job.device)
    timer, timeline = PhaseTimer(), list[tuple[str, float, float]]()
    with _scratch(job) as scratch:
        watch.phase("read")
        images = _images(job, comm, scratch)
        left_out, masked = _left_out(job, images, comm), _masked(job, images, comm)
        watch.masked(masked)
        trim()  # memory of the chunks that were decompressed
        timer.end_phase("read")
        watch.phase("optimise")
        kept = _kept(job, comm, scratch)
        outcome = _optimise(job, images, comm, watch, timeline, scratch, kept)
        timer.end_phase("optimise")
        watch.phase("measure")
        metrics = _metrics(job, outcome, images, comm)
        timer.end_phase("measure")
        watch.phase("judge")
        with _verdict(job, outcome, images, metrics, _shares(job, masked), comm) as verdict:
            timer.end_phase("judge")
            readers = [image.source.voxels for image in images if isinstance(image, SourceImage)]
            del images
            watch.phase("write")
            fill = write_result(job.output, job.plan, job.order, job.moving, outcome, comm, job.attempt, *readers[1:])
            outcome.displacement = None
            if kept is not None:
                kept.remove()
            timer.end_phase("write")
            judged = verdict()
            timer.end_phase("judge")
    decoded = [int(n) for n in comm.sum_counts(np.array([reader.decoded for reader in readers], np.int64))] if readers else []
    levels = [job.as_stored(report.as_dict()) for report in outcome.levels]
    record = {**machine_record(device), **memory, "traffic": dict(comm.traffic), "timeline": timeline}
    blocks = [[slab.start, slab.stop] for slab in job.plan.partition.slabs]
    plan = {"blocks": blocks, "planned_bytes": job.plan.peak_bytes}
    return {
        "levels": levels,
        "metrics": metrics,
        "verdict": judged,
        "seconds": timer.seconds,
        "machine": record,
        "plan": plan,
        "fill": fill,
        "left_out": left_out,
        "masked": masked,
        "decoded": [n / reader.pieces for n, reader in zip(decoded, readers, strict=True)],
    }


@contextmanager
def _scratch(job: RankJob) -> Iterator[ScratchFolder | None]:
    """A folder for fields on disk, where the plan has some. Raises ConfigError where none is known."""
    if not job.plan.on_disk:
        yield None
        return
    if job.scratch is None:
        raise ConfigError(
            "fields or images do not fit into memory and the output is not on this machine; name a local folder with --scratch."
        )
    with ScratchFolder(job.scratch, job.scratch_size) as folder:
        yield folder


def _kept(job: RankJob, comm: Communicator, scratch: ScratchFolder | None) -> KeptCheckpointer | None:
    """What makes fields on disk their own checkpoint, where one is asked for after every iteration."""
    if job.checkpoint != 0 or job.plan.state != "disk" or scratch is None:
        return None
    return KeptCheckpointer(job.output, scratch, comm)


def _images(job: RankJob, comm: Communicator, scratch: ScratchFolder | None) -> tuple[Image, Image]:
    """Both, where the plan has them."""
    where = job.plan.images
    elsewhere = None if scratch is None else scratch.allocate
    allocate = elsewhere if where in ("device", SOURCE) else allocator(where, Device(job.device), elsewhere)
    masks = job.fixed_mask, job.moving_mask
    return read_images(job.plan, job.fixed, job.moving, masks, comm, job.device, job.backgrounds, allocate)


def _left_out(job: RankJob, images: tuple[Image, Image], comm: Communicator) -> list[int]:
    """Voxels of both images that are stored background, over all ranks."""
    if job.backgrounds == (None, None):
        return [0, 0]
    return [int(n) for n in comm.sum_counts(np.array([image.left_out for image in images], np.int64))]


def _masked(job: RankJob, images: tuple[Image, Image], comm: Communicator) -> list[int | None]:
    """Voxels of both images that their masks leave, over all ranks; None without a mask."""
    given = job.fixed_mask, job.moving_mask
    if given == (None, None):
        return [None, None]
    return [None if mask is None else n for mask, n in zip(given, mask_counts(images, comm), strict=True)]


def _shares(job: RankJob, masked: Sequence[int | None]) -> dict[str, float]:
    """Of the images that masks leave, by role."""
    sizes = {"fixed": job.plan.fixed.size, "moving": job.plan.moving.size}
    return {role: n / size for (role, size), n in zip(sizes.items(), masked, strict=True) if n is not None}


def use_device(job: RankJob, cores: int) -> Device:
    """Set the threads and the device of this process; on a GPU, start to compile the usual kernels."""
    set_thread_count(job.threads or cores)
    device = Device(job.device)
    device.use()
    if device.kind == "cuda":
        precompile.start_helpers(device.memory - job.plan.peak_bytes)
    return device


def _optimise(
    job: RankJob, images: tuple[Image, Image], comm: Communicator, watch: Watch, timeline: list[tuple[str, float, float]],
    scratch: ScratchFolder | None = None, kept: KeptCheckpointer | None = None,
) -> Outcome:  # fmt: skip
    """All stages in order, from the start or from the last checkpoint."""
    checkpointer = Checkpointer(job.output, comm, job.attempt)
    save = checkpointer.save if job.checkpoint is not None else None
    trace = (lambda *event: timeline.append(event)) if job.trace else None
    allocate = None if scratch is None else scratch.allocate
    rank = Rank(job.plan, images, job.start, comm, watch, save, trace, job.begin, allocate, kept, job.spent)
    if job.resume:
        with kept_reader(job.output, job.scratch, job.plan, Device(job.device), comm) as reader:
            checkpointer.restore(rank, reader)
    return rank.run()


@contextmanager
def _verdict(
    job: RankJob, outcome: Outcome, images: tuple[Image, Image], metrics: dict[str, Any], masks: Mapping[str, float],
    comm: Communicator,
) -> Iterator[Callable[[], dict[str, Any]]]:  # fmt: skip
    """What gives it on rank 0, from coarse levels of which all ranks give their part; empty on the others.

    Where GPUs do the rest of the work it is made in a thread beside that; kernels of a CPU are not started from two threads.
    """
    pair = coarse_pair(job.plan, outcome, images, comm)
    if comm.rank:
        yield dict
    elif job.device == "cpu":
        found = _judged(job, outcome, pair, metrics, masks)
        yield lambda: found
    else:
        threads = thread_count()
        with ThreadPoolExecutor(1, "verdict", set_thread_count, (threads,)) as pool:
            yield pool.submit(_judged, job, outcome, pair, metrics, masks).result


def _judged(
    job: RankJob, outcome: Outcome, pair: CoarsePair, metrics: dict[str, Any], masks: Mapping[str, float]
) -> dict[str, Any]:
    evidence, states = gather_evidence(pair, job.start)
    whole = job.fixed_mask is None and job.moving_mask is None and job.backgrounds == (None, None)  # all voxels were compared
    measures = (metrics["before"], metrics["after"]) if whole else None
    started = job.begin is not None or not np.array_equal(job.start, np.eye(4))
    levels = [report.as_dict() for report in outcome.levels]
    verdict = judge(evidence, levels, metrics.get("jacobian"), measures, started=started, masks=masks)
    z, y, x = (job.order.index(axis) for axis in range(3))
    return replace(verdict, matched=MatchMap(pair.of_whole(states), pair.factors).transpose((z, y, x)).as_dict()).as_dict()


def _metrics(job: RankJob, outcome: Outcome, images: tuple[Image, Image], comm: Communicator) -> dict[str, Any]:
    """Similarity of the images before and after, and statistics of the Jacobian determinant."""
    if job.plan.images == SOURCE:
        return _source_metrics(job, outcome, images, comm)
    block = replace(outcome.block, halo=0)
    metrics: dict[str, Any] = {"before": likeness(job.plan, Outcome(job.start, _beginning(job, block), [], block), images, comm)}
    metrics["after"] = likeness(job.plan, outcome, images, comm)
    if outcome.displacement is not None:
        metrics["jacobian"] = folding(outcome.displacement, outcome.block, comm)
    return metrics


def _beginning(job: RankJob, block: Block) -> ComputedPlanes | None:
    """The displacement to start from at full resolution, computed again where it is compared, so that it takes no room."""
    begin, grid = job.begin, job.plan.fixed
    if begin is None:
        return None
    return ComputedPlanes(block.own, (grid.shape[1], grid.shape[2]), lambda planes: begin(grid, planes, job.start))


def _source_metrics(job: RankJob, outcome: Outcome, images: Any, comm: Communicator) -> dict[str, Any]:
    """As ``_metrics``, of images that stay in their files."""
    before, after = source_measure.likenesses(job.plan, job.start, outcome, images, comm)
    metrics: dict[str, Any] = {"before": before, "after": after} | ({} if job.begin is None else {"before_by": "affine"})
    if isinstance(outcome.displacement, UpsampledField):
        metrics["jacobian"] = source_measure.folding(outcome.displacement, job.plan.partition[comm.rank], comm)
    return metrics

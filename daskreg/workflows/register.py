"""``daskreg register``: register two images and write a run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from daskreg.arguments import checked_arguments
from daskreg.config import Config, Deformable, DeviceName
from daskreg.deferred import DeferredModule
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.fork_server import fork_server
from daskreg.reporting.follow import ProgressLike, following, interactive
from daskreg.reporting.log import shown
from daskreg.storage import RunStore
from daskreg.storage.fill import Fill
from daskreg.storage.fs.address import is_remote, parse_address
from daskreg.storage.fs.atomic import remove_leftovers, require_distinct, require_folder
from daskreg.storage.fs.files import exists
from daskreg.storage.fs.lock import OutputLock, only_writer
from daskreg.storage.kept_fields import remove_kept
from daskreg.storage.recorded_images import FOLDER
from daskreg.storage.registry import image_formats
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED
from daskreg.workflows.background import Choice
from daskreg.workflows.fitting import fitting_plan, open_foreseen
from daskreg.workflows.inputs import ConfigLike, ImageLike, Inputs, Request, Spacing
from daskreg.workflows.plan import plan
from daskreg.workflows.provenance import provenance
from daskreg.workflows.ready_run import ReadyRun, scratch_of
from daskreg.workflows.recipes import Trial, choose_recipe
from daskreg.workflows.resources import (
    LOCAL,
    Comm,
    Images,
    Residency,
    Resources,
    State,
    allocate,
    parse_duration,
    parse_memory,
)
from daskreg.workflows.result import Result
from daskreg.workflows.resume import (
    keep_checkpoint_or_remove,
    kept_fields,
    require_resume_arguments,
    require_same_images,
    require_same_request,
    restore_request,
    run_to_resume,
    seconds_so_far,
    tell_of_other_scratch,
)
from daskreg.workflows.start import StartLike, path_of_start, stored_start
from daskreg.workflows.temporary import temporary_run
from daskreg.workflows.unchanged import changes_while_running, input_digests, resumed_recipe

if TYPE_CHECKING:
    import dask

    from daskreg import cluster as clusters
    from daskreg.cluster import Client
    from daskreg.engine import verdict as verdicts
else:
    dask = DeferredModule("dask")
    clusters = DeferredModule("daskreg.cluster")
    verdicts = DeferredModule("daskreg.engine.verdict")

__all__ = ["Result", "plan", "register"]

log = logging.getLogger("daskreg")


@renamed_arguments(fewest="minimum_planes")
@checked_arguments(preset="config", checkpoint_every="checkpoint")
def register(
    fixed: ImageLike | None = None,
    moving: ImageLike | None = None,
    config: ConfigLike | None = None,
    *,
    candidates: Sequence[str] | str | None = None,
    output: str | Path | None = None,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    initial_transform: StartLike | None = None,
    spacing: Spacing = None,
    fill: Fill = None,
    background: Choice = None,
    overwrite: bool = False,
    resume: bool = False,
    inputs_changed: bool = False,
    progress: ProgressLike = None,
    client: Client | None = None,
    cluster: str | None = None,
    workers: int | None = None,
    device: DeviceName = Resources.device,
    memory: int | str | None = None,
    residency: Residency = Resources.residency,
    comm: Comm = Resources.comm,
    threads: int | None = None,
    checkpoint: float | None = Resources.checkpoint,
    retries: int = Resources.retries,
    deadline: float = Resources.deadline,
    minimum_planes: int = Resources.minimum_planes,
    trace: bool = Resources.trace,
    state: State = Resources.state,
    images: Images = Resources.images,
    host_memory: int | str | None = None,
    scratch: str | Path | None = None,
    scratch_size: int | str | None = None,
    wait_for_workers: float | str | None = None,
) -> Result:
    """Find the transform that brings ``moving`` onto ``fixed``, and resample it there.

    The result is the same, bit for bit, whatever the resources (``client`` and all that follows it), and whether the run was
    resumed or not. The method is that of Jena et al., *A Scalable Distributed Framework for Multimodal GigaVoxel Image
    Registration*, arXiv 2509.25044.

    Parameters
    ----------
    fixed, moving
        An address (``PATH[::key=value,...]``), a NumPy or Dask array (Z, Y, X), a Volume (``open_volume(array, grid=...)``), or
        an image with its geometry: a zarr.Array, an xarray.DataArray, an image of SimpleITK, ITK or nibabel.
    config
        A Config, a list of stages, the name of a preset, or the path of a YAML file; ``brain`` by default.
    candidates
        Presets that are tried on coarse images in place of ``config``, a list or ``"brain,rigid"``; that with the best verdict is
        then run.
    output
        Where RUN.zarr is written; by default a temporary folder that is removed with the Python process.
    fixed_mask, moving_mask
        Weights of the voxels: an address or a Volume on any grid that overlaps the image, or an array (Z, Y, X) on its grid.
    initial_transform
        A transform from fixed to moving points to start from: an address that ``load_transform`` reads, a Result, a Transform, or
        a displacement (3, Z, Y, X) in voxels, z, y, x, such as a network's, as an array or a tensor. A Transform and a
        displacement are written to ``RUN.start.zarr`` beside the run.
    spacing
        World units a voxel, (z, y, x) or one number, of arrays that state none.
    fill
        Value of the moved image outside of the moving one: a number, or "nan". By default 0, or the smallest value at the corners
        of the moving image where that is negative, as air is in a CT.
    background
        Stored voxels that stand for nothing, such as the filling of a mosaic, and get weight 0: those of a value, "nan", or
        "auto": areas of the value that fills the images' faces, where one does. One choice for both images, or a pair.
    overwrite
        Replace an existing run, once the new one is complete.
    resume
        Continue from the last checkpoint of an unfinished run at ``output``, with its images, configuration and initial
        transform; start from the beginning where there is none. A complete run is returned, and nothing is computed. Arguments
        that are given again must be the same, and images, masks and initial transform unchanged: a digest of each is stored with
        the run.
    inputs_changed
        With ``resume``: continue although they changed, or are other ones on the same grids; the result is then of both.
    progress
        Called with a ``Progress``, at most ten times a second. By default a display in a notebook, bars on a terminal, and
        elsewhere lines on standard error, or in the log where logging is configured; False: nothing.
    client, cluster
        A Dask client, or a scheduler's address; ``"cuda"``: a worker for each GPU of this machine; ``"slurm"``, ``"pbs"``,
        ``"lsf"`` or ``"sge"``: a job for each worker, from dask-jobqueue's configuration. By default the current client; without
        one, workers that daskreg starts and stops.
    workers
        Blocks the fixed image is cut into, one a worker (all of a cluster's; else 1).
    device
        ``"cpu"``, ``"cuda"``, or ``"auto"``, which takes GPUs where every worker has one.
    memory
        What a worker may use, bytes or text such as "48GB"; by default what it has.
    residency
        How a worker holds the moving image; ``"auto"`` takes, at each level, the first of these that fits into its memory:

        - ``"replicate"``: all of it. Nothing is sent.
        - ``"window"``: the planes that its block can reach, and a few more; those that are missing later come from other workers.
        - ``"ring"``: one shard of it, and room for two; the shards go around all workers in every iteration.
    comm
        How workers communicate: ``"tcp"``, ``"ucx"``, ``"nccl"`` (GPUs of one machine), or ``"auto"``: UCX where all have it and
        the cluster does not encrypt, else TCP.
    threads
        CPU threads of a worker, by default its share.
    checkpoint
        Seconds between two, None for none.
    retries
        How often a run continues without a lost worker.
    deadline
        Seconds after which a silent worker counts as lost.
    minimum_planes
        Of a worker's block.
    trace
        Record when a worker sampled and waited.
    state
        Where displacement and optimizer state are while they are optimised: ``"device"`` with all buffers, ``"host"`` in the
        machine's memory or ``"disk"``, from where slabs come to the device; ``"auto"`` takes the first of these where they fit.
    images
        Where both images are at full resolution: ``"device"``, ``"host"``, ``"disk"``, or ``"source"``: they stay in their files,
        which are read again whenever they are needed, and of which the levels of the stages alone are kept. ``"auto"`` takes the
        first of these where they fit, ``"source"`` only where no stage runs at full resolution.
    host_memory
        What they may take of the machine's memory beside a GPU's, by default three quarters of a worker's share.
    scratch
        Folder for fields on disk, by default beside the output.
    scratch_size
        What a worker may use of it.
    wait_for_workers
        Seconds, or text such as "30min", to wait for the workers of a cluster; by default a day for those that are jobs in a
        queue, two minutes for others.

    Raises
    ------
    InputError, OutputError, PlanTooLarge
        Before anything is computed.
    RunError
        While it runs.
    """
    started = time.perf_counter()
    _require_main_guard()
    resources = Resources(
        workers, device, parse_memory(memory), residency, comm, threads, checkpoint, retries, deadline, minimum_planes, trace,
        state, images, parse_memory(host_memory), scratch, parse_memory(scratch_size), parse_duration(wait_for_workers),
    )  # fmt: skip
    request = Request(fixed, moving, config, fixed_mask, moving_mask, spacing, None, fill, background)
    require_resume_arguments(output, resume=resume, inputs_changed=inputs_changed)
    path = parse_address(temporary_run() if output is None else output).path
    require_folder(path)
    with _foreseen_workers(client, cluster, workers, device), _only_writer(path) as lock:
        beside = temporary_run() if is_remote(path) else Path(path)
        start = stored_start(initial_transform, fixed, moving, spacing, beside, resume=resume)
        request = replace(request, initial_transform=start)
        store = run_to_resume(path) if resume else None
        if store is not None and store.complete:
            return _kept(store, request, overwrite, in_memory=path_of_start(initial_transform) is None)
        request = request if store is None else restore_request(store, request)
        trials = list[Trial]()
        if candidates is not None and store is None:
            names = [name.strip() for name in candidates.split(",")] if isinstance(candidates, str) else candidates
            request, trials = _chosen(request, names, client, cluster, device, threads)
        if resume and store is None and (fixed is None or moving is None):
            raise ConfigError(f"there is no run at {path} to resume, and no two images to start one: give FIXED and MOVING.")
        if _queued(client, cluster):
            asked = open_foreseen(str(cluster), resources, request, path, new=store is None and not overwrite)
        else:
            asked = request.open()
        with clusters.existing_client(client, None if cluster in LOCAL else cluster, workers) as found:
            with nullcontext() if progress is False else shown():
                use = allocate(resources, found, cluster)
            inputs = asked.for_device(use.device)
            planned = fitting_plan(inputs, use)
            scratch = scratch_of(path, use)
            replaced = kept_fields(path, scratch) if store is None else None
            if store is not None:
                tell_of_other_scratch(store.path, scratch, found)
            store = _begun(store, path, request, inputs, overwrite, inputs_changed)
            earlier = seconds_so_far(store.path, scratch) if resume else 0.0
            lasting = output is not None or interactive()
            run = ReadyRun(inputs, planned, store, use, resume, lasting, begun=started - earlier)
            with keep_checkpoint_or_remove(store, scratch, lasting=run.lasting):
                place = nullcontext(found) if found else clusters.embedded_client(use.workers, threads, use.device)
                with following(progress) as observer, place as at, clusters.scheduler_required():
                    begun = time.perf_counter()
                    report = run.execute(at, observer, elsewhere=found is not None or use.workers > 1)
                    now = time.perf_counter()
                    phases = {"earlier": earlier} if earlier else {}
                    phases |= {"start": begun - started, **report["seconds"]}
                    report["seconds"] = {**phases, "total": earlier + now - started}
                lock.verify()
                kept = kept_fields(store.path, scratch)
                if trials:
                    report["tried"] = [t.as_dict() for t in trials]
                changed, written = changes_while_running(store, request), images_of(planned.config)
                finished = store.finish({**provenance(planned, inputs.fixed, inputs.moving), **report, **changed}, written)
                for fields in filter(None, [kept, replaced]):
                    remove_kept(fields)
    return Result(RunStore.open(finished.path))


def _foreseen_workers(
    client: Client | None, cluster: str | None, workers: int | None, device: DeviceName
) -> AbstractContextManager[object]:
    """Begin to import for worker processes, where there will be some, while this process reads headers and plans."""
    wanted = workers or (2 if cluster == "cuda" else 1)
    given = client is not None or cluster not in LOCAL or ("distributed" in sys.modules and clusters.current_client() is not None)
    if given or wanted == 1:
        return nullcontext()
    return fork_server("cuda" if cluster == "cuda" or device == "cuda" else "cpu")


def _kept(store: RunStore, request: Request, overwrite: bool, *, in_memory: bool) -> Result:
    """The Result of a complete run that was asked to be continued. Raises ConfigError and OutputExists for another one.

    in_memory: whether an initial transform was given that has no address, which no digest can tell from that of the run.
    """
    if overwrite:
        raise OutputExists(f"{store.name} is complete: there is nothing to continue; leave out resume (--resume) to replace it.")
    if request.initial_transform is not None and in_memory:
        raise OutputExists(
            f"{store.name} is complete; leave out the initial transform in memory, which cannot be compared with its own."
        )
    require_same_request(store, request)
    log.info("%s is complete: nothing is computed", store.name)
    return Result(store)


def _require_main_guard() -> None:
    """Raises ConfigError in a process that a script has started by ``multiprocessing``, and that is importing the script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "a process that the script has started imports the script, and would register once more: put the call below a line "
            "if __name__ == '__main__': in the script. Workers of daskreg do not import it."
        )


def _chosen(
    request: Request, names: Sequence[str], client: Client | None, cluster: str | None, device: DeviceName, threads: int | None
) -> tuple[Request, list[Trial]]:
    """The request with the best of several presets, and how they did, the best first. Raises ConfigError."""
    if request.config is not None:
        raise ConfigError("a configuration and recipes to try were both given; give one of them.")
    if request.fixed is None or request.moving is None:
        raise ConfigError("two images are needed to try recipes: daskreg register FIXED MOVING -o RUN.zarr.")
    if _queued(client, cluster):
        cluster, device = None, "auto"  # coarse images are no work for a queue
    where = None if cluster == "cuda" else cluster
    trials = choose_recipe(request, names, client, cluster=where, device=device, threads=threads)
    return replace(request, config=trials[0].name), trials


@contextmanager
def _only_writer(path: str) -> Iterator[OutputLock]:
    """The only writer of a run, what another one left that died being tidied up."""
    with only_writer(path) as lock:
        if lock.taken_over:
            remove_leftovers(path)
        yield lock


def _queued(client: Client | None, cluster: str | None) -> bool:
    """Whether workers are jobs of a batch system that daskreg submits."""
    return client is None and cluster not in LOCAL and cluster in clusters.BATCH_SYSTEMS


def _begun(
    store: RunStore | None, path: str, request: Request, inputs: Inputs, overwrite: bool, inputs_changed: bool
) -> RunStore:
    """The unfinished run, continued, or a new one."""
    if store is None:
        return _new_store(path, request, inputs, overwrite)
    require_same_images(store, inputs.grids)
    return store.continued(recipe=resumed_recipe(store, request, changed=inputs_changed))


def require_run_place(output: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raises OutputExists and OutputError for an output that ``register`` would refuse; nothing is written."""
    path = parse_address(output).path
    _require_store(path)
    if not (resume and exists(path)):
        RunStore.require_place(path, overwrite)


def _require_store(path: str) -> None:
    """Raises OutputError for the name of a file, and says what stands below a name that does not say it."""
    if any(f.single_file for f in image_formats.by_ending(path)):
        raise OutputError(f"{path}: a run is a Zarr store; name it .zarr, and 'daskreg export' makes a field of it.")
    if not path.rstrip("/").endswith(".zarr"):
        log.info("%s becomes a folder, a Zarr store; with the ending .zarr its name says so, also to viewers", path)


def _new_store(path: str, request: Request, inputs: Inputs, overwrite: bool) -> RunStore:
    _require_store(path)
    recipe, files = request.recipe(), (inputs.config.fixed_mask, inputs.config.moving_mask, inputs.config.initial_transform)
    require_distinct(path, *(recipe[name] for name in ("fixed", "moving", "fixed_mask", "moving_mask")), *files)
    fixed, moving = inputs.grids
    recipe["inputs"] = input_digests(request)
    recipe[FOLDER] = None if is_remote(path) else os.path.dirname(os.path.realpath(path))
    return RunStore.create(path, fixed=fixed, moving=moving, overwrite=overwrite, recipe=recipe)


def images_of(config: Config) -> tuple[str, ...]:
    """The images that a run of a configuration has at least."""
    return (MOVED, DISPLACEMENT) if any(isinstance(s, Deformable) for s in config.stages) else (MOVED,)

"""The ranks of a registration: started on the workers of a client, and what they found is told."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskreg.config import Config
from daskreg.deferred import DeferredModule
from daskreg.planning import Plan
from daskreg.reporting.tasks import logged
from daskreg.storage import RunStore
from daskreg.storage.fill import describe_fill
from daskreg.storage.fs.address import is_remote
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED
from daskreg.workflows.background import backgrounds
from daskreg.workflows.fitting import first_affine, plan_on
from daskreg.workflows.inputs import Inputs, staged
from daskreg.workflows.resources import Allocation
from daskreg.workflows.result import Report, merge_reports

if TYPE_CHECKING:
    import dask

    from daskreg import cluster as clusters
    from daskreg.cluster import Client, RankJob
    from daskreg.engine import verdict as verdicts
    from daskreg.engine.report import Observer
else:
    dask = DeferredModule("dask")
    clusters = DeferredModule("daskreg.cluster")
    verdicts = DeferredModule("daskreg.engine.verdict")

log = logging.getLogger("daskreg")


@dataclass(frozen=True)
class ReadyRun:
    """A registration that is ready to start.

    lasting: whether the run is still there after Ctrl-C or SIGTERM has ended the call;  begun: when it began, on the clock
    ``time.perf_counter``, less what earlier parts of it have taken.
    """

    inputs: Inputs
    plan: Plan
    store: RunStore
    use: Allocation
    resume: bool
    lasting: bool
    begun: float

    def execute(self, client: Client, observer: Observer, *, elsewhere: bool) -> Report:
        """All ranks, then the pyramids; the ranks' report. elsewhere: whether the workers are other processes."""
        asked = self.use.options
        observer.dashboard(clusters.dashboard(client))
        with staged(self.inputs, self.store.name, client if elsewhere else None) as reachable:
            volumes = reachable.cut()
            make = partial(self._job, volumes, backgrounds(self.inputs.config, *volumes[:2]))
            options: dict[str, Any] = {"comm": asked.comm, "retries": asked.retries, "deadline": asked.deadline}
            options["save_when_stopped"] = self.lasting
            ranks = clusters.run_on_cluster(client, make, self.use.workers, observer, **options)
        report, built = merge_reports(ranks), time.perf_counter()
        self._tell(report)
        _tell_what_was_left_out(report, self.inputs.config)
        _tell_what_was_taken_back(report)
        _tell_the_verdict(report)
        with client.as_current() if elsewhere else dask.config.set(scheduler="threads"):
            build_pyramids(self.store)
        report["seconds"]["write"] += time.perf_counter() - built
        return report

    def _tell(self, report: Report) -> None:
        """What the ranks have found out about the images, in the log."""
        images = self.inputs.fixed, self.inputs.moving
        for role, image, count in zip(("fixed", "moving"), images, report["left_out"], strict=True):
            if count:
                share = 100 * count / image.grid.size
                log.info("background: %d voxels (%.1f %%) of the %s image were left out", count, share, role)
        if report["decoded"]:
            log.info("images in their files: fixed was decoded %.3g times, moving %.3g times", *report["decoded"])
        log.info("%s", describe_fill(images[1].name, self.plan.config.fill, float(report["fill"])))

    def _job(self, volumes: tuple[Any, ...], left_out: tuple[Any, Any], workers: int) -> RankJob:
        """The job of each worker; their number is smaller than planned where some were lost."""
        from daskreg.lazy.initial_displacement import InitialDisplacement

        fixed, moving, *masks = volumes
        inputs, use, start = self.inputs, self.use, self.inputs.start
        return clusters.RankJob(
            self.plan if workers == use.workers else plan_on(inputs, use, workers), fixed, moving, self.store.path,
            first_affine(inputs), masks[0], masks[1], order=inputs.orders[0], threads=use.options.threads,
            checkpoint=use.options.checkpoint, resume=self.resume, trace=use.options.trace, device=use.device,
            begin=None if start is None or start.is_affine else InitialDisplacement(start),
            backgrounds=left_out, attempt=self.store.attempt, scratch=scratch_of(self.store.path, use),
            scratch_size=use.options.scratch_size, spent=time.perf_counter() - self.begun,
        )  # fmt: skip


def scratch_of(output: str, use: Allocation) -> str | None:
    """The folder for fields on disk: as asked for, or that of a local output."""
    if use.options.scratch is not None:
        return str(Path(use.options.scratch).absolute())
    return None if is_remote(output) else str(Path(output).absolute().parent)


def build_pyramids(store: RunStore) -> None:
    """Coarser levels of what the ranks wrote, a task a chunk."""
    for name in (DISPLACEMENT, MOVED):
        if store.has(name):
            with logged(f"making coarser levels of {name}"):
                store.build_pyramid(name)


def _tell_the_verdict(report: Report) -> None:
    verdict = verdicts.Verdict.of_record(report["verdict"])
    if verdict is not None:
        log.log(logging.INFO if verdict.status == "ok" else logging.WARNING, "%s", verdict.line())


def _tell_what_was_left_out(report: Report, config: Config) -> None:
    """Of images without a background of their own, of which the log has said how much is left out."""
    from daskreg.engine.filling import Filling

    filling = Filling.of_details([level["detail"] for level in report["levels"]])
    found = ("fixed", filling.fixed, config.fixed_background), ("moving", filling.moving, config.moving_background)
    images = [role for role, value, background in found if value is not None and background is None]
    if not images:
        return
    what = f"areas of one value in the {' and '.join(images)} image"
    if any(level["stage"] == "deformable" for level in report["levels"]):
        log.warning("the search and the linear stages left %s out, the deformable stage did not: try --background auto", what)
    else:
        log.info("the search and the stages after it left %s out", what)


def _tell_what_was_taken_back(report: Report) -> None:
    from daskreg.engine.guard import BEFORE, COARSER, OWN

    for level in report["levels"]:
        if (loss := level["detail"].get(COARSER)) is not None:
            rise = f"over what it compared before, they raised the loss of scale {level['scale']} from {loss['before']:.4f}"
            rise += f" to {loss['after']:.4f}"
            log.info("coarser levels of the stage %s were given up: %s", level["stage"], rise)
        if level["stopped"] == "taken back":
            whose = next(name for name in (BEFORE, OWN) if name in level["detail"])
            loss, text = level["detail"][whose], "the loss of the stage before it" if whose == BEFORE else "its own loss"
            rise = f"{text} rose from {loss['before']:.4f} to {loss['after']:.4f}"
            log.warning("the stage %s was taken back: %s", level["stage"], rise)

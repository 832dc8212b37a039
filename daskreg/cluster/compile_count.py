"""How many kernels a run compiles, told before the first: those which it may need, less those that are compiled already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from daskreg.cluster.compile_ahead import Rehearsal
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.cache import missing
from daskreg.kernels.compiler.dry_run import dry_run
from daskreg.kernels.compiler.host_launch import set_thread_count, thread_count
from daskreg.kernels.device import Kind
from daskreg.planning import SOURCE, Plan

log = logging.getLogger(__name__)


class CompileCount:
    """Counts kernels that were missing when the first was compiled, whoever compiles them: the rank, or processes beside it."""

    def __init__(self, plan: Plan, kind: Kind) -> None:
        self.plan, self.kind, self.total = plan, kind, False
        self._missing: set[Path] | None = None

    def at(self, path: Path, own: int) -> tuple[int, int | None]:
        """The kernel of that file is compiled now: the so manieth of so many at most, None where that is not known.

        own: kernels that the rank has compiled itself, with this one
        """
        if self._missing is None:
            foreseen = foreseen_files(self.plan, self.kind)
            self.total, self._missing = bool(foreseen), missing(foreseen, self.kind)
        self._missing.add(path)
        done = sum(p.exists() for p in self._missing)
        most = len(self._missing)
        return min(max(done + 1, own), most), most if self.total else None


def foreseen_files(plan: Plan, kind: Kind) -> set[Path]:
    """The files of all kernels that a rank may need, and of those that processes beside it compile; empty where not known.

    On a CPU those of a dry run on small images, for a plan of one worker with its images in memory or on disk; on a GPU the usual
    ones, where processes beside the rank compile them.
    """
    if kind == "cuda":
        return _files(precompile.listed_files)
    return set() if plan.workers > 1 or plan.images == SOURCE else _files(partial(_noted, plan))


def kernels_to_compile(plan: Plan) -> int:
    """How many CPU kernels about the first run of a plan compiles on this machine; 0 on a GPU, and where it is not known."""
    return 0 if plan.device == "cuda" else len(missing(_files(partial(_noted, plan)), "cpu"))


def _files(find: Callable[[], set[Path]]) -> set[Path]:
    """Those of kernels, empty where they are not known."""
    try:
        return find()
    except Exception as problem:  # noqa: BLE001  # a count is no reason to end a run, or to refuse a plan
        log.info("how many kernels are compiled is not known ahead (%r).", problem)
        return set()


def _noted(plan: Plan) -> set[Path]:
    """The files of kernels that a dry run on small images asks for."""
    threads = thread_count()
    set_thread_count(1)  # launches of other threads would not be noted
    try:
        with dry_run() as noted:
            Rehearsal.of(plan).run(strict=True)
    finally:
        set_thread_count(threads)
    return noted.files

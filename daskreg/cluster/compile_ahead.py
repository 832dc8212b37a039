"""Compile the CPU kernels of a run in a second process, beside the rank that compiles them as it meets them.

Numba compiles in Python, one kernel after another: most of the time of a first registration. The helper runs the stages of the
same configuration on images of a few voxels, the last stage first, and what it compiles is cached on disk (``compiler.cache``):
each kernel is compiled by whichever of the two comes to it first. A helper that fails costs seconds and nothing else.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from daskreg import machine
from daskreg.comm import SingleRank
from daskreg.config import Config, Optimised
from daskreg.engine.coarse_pair import coarse_pair
from daskreg.engine.edge_rivals import edge_rivals
from daskreg.engine.evidence import gather_evidence
from daskreg.engine.images import Image, normalise
from daskreg.engine.measure import folding, likeness
from daskreg.engine.rank import Rank
from daskreg.engine.report import Outcome, Watch
from daskreg.errors import DaskregError
from daskreg.grid import Grid
from daskreg.kernels.compiler.host_launch import set_thread_count
from daskreg.planning import Plan, make_plan

log = logging.getLogger(__name__)
PROCESS_BYTES = 1 << 30  # that must be left beside a run: a helper takes about a third of it
VOXELS_OF_A_LEVEL = 12  # along each axis of the coarsest level
MOST_VOXELS = 48  # along each axis at full resolution
ITERATIONS = 2  # of each level
CHECK_INTERVAL, END_TIMEOUT = 0.5, 10.0  # seconds


class CompileHelper:
    """The process beside one rank. Starts when the first kernel has to be compiled; ended by ``close``.

    wanted: whether this rank is to have one
    """

    def __init__(self, plan: Plan, *, wanted: bool) -> None:
        limit = machine.memory().value if plan.memory is None else plan.memory
        roomy = limit - plan.workers * plan.peak_bytes > PROCESS_BYTES
        self.wanted = wanted and roomy and machine.cores().value > plan.workers and not getattr(sys, "frozen", False)
        self.given = Rehearsal.of(plan)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Once; a process that cannot be started is not missed."""
        if not self.wanted:
            return
        self.wanted = False
        command = [sys.executable, "-P", "-m", __name__, str(os.getpid())]
        nothing = subprocess.DEVNULL
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing)
            assert self.process.stdin is not None
            with self.process.stdin as pipe:
                pickle.dump(self.given, pipe)
        except (OSError, pickle.PicklingError, AttributeError) as problem:
            log.info("kernels are not compiled ahead (%r).", problem)

    def close(self) -> None:
        """Nothing is compiled any more."""
        self.wanted = False
        if self.process is not None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_TIMEOUT)


@dataclass(frozen=True)
class Rehearsal:
    """Runs a configuration on two small images, for its kernels.

    masks: whether each image has one;  state: where displacement and optimizer state are;  edge_mm: of the fixed image's voxels
    """

    config: Config
    masks: tuple[bool, bool]
    state: str = "device"
    edge_mm: float | None = None

    @classmethod
    def of(cls, plan: Plan) -> Rehearsal:
        """Of a plan's run. Fields on disk are arrays too."""
        return cls(plan.config, plan.masks, "device" if plan.state == "device" else "host", plan.fixed.edge_mm)

    def run(self, *, strict: bool = False) -> None:
        """The last stage at full resolution first, and what follows the stages after it; then its other levels, and so on.

        strict: raise what goes wrong, in place of going on with the next stage
        """
        ignored = () if strict else (DaskregError, ValueError, ArithmeticError)  # some levels have too few voxels
        for n, stage in enumerate(reversed(self.config.stages)):
            if isinstance(stage, Optimised):
                for scales, measured in (((1,), n == 0), (stage.scales, False)):
                    with suppress(*ignored):
                        self._levels(stage, scales, measured)

    def _levels(self, stage: Optimised, scales: tuple[int, ...], measured: bool) -> None:
        short = stage.model_copy(update={"scales": scales, "iterations": (ITERATIONS,) * len(scales)})
        config, comm = self.config.model_copy(update={"stages": (short,)}), SingleRank()
        fixed, moving = self._images(max(scales))
        plan = make_plan(fixed.grid, moving.grid, config, masks=self.masks, state=self.state)
        outcome = Rank(plan, (fixed, moving), np.eye(4), comm, Watch()).run()
        if measured:
            self._measure(plan, outcome, (fixed, moving), comm)

    def _images(self, scale: int) -> tuple[Image, Image]:
        """Waves that do not match: where nothing is to be done, most kernels are not launched."""
        n = min(MOST_VOXELS, VOXELS_OF_A_LEVEL * scale)
        grid = Grid((n, n, n))
        if self.edge_mm is not None:
            grid = replace(grid, spacing=(self.edge_mm,) * 3, unit="millimeter")

        def image(phase: float, masked: bool) -> Image:
            wave = np.sin(np.arange(n, dtype=np.float32) / 2 + np.float32(phase))
            voxels = np.float32(0.5) + np.float32(0.4) * wave[:, None, None] * wave[None, :, None] * wave
            normalise(voxels, self.config, SingleRank(), "an image")
            return Image.whole(voxels, grid, np.ones(voxels.shape, np.float32) if masked else None)

        return image(0, self.masks[0]), image(0.3, self.masks[1])

    def _measure(self, plan: Plan, outcome: Outcome, images: tuple[Image, Image], comm: SingleRank) -> None:
        likeness(plan, outcome, images, comm)
        if outcome.displacement is not None:
            folding(outcome.displacement, outcome.block, comm)
        pair = coarse_pair(plan, outcome, images, comm)
        gather_evidence(pair, np.eye(4))
        edge_rivals(pair, np.eye(4))  # which the evidence asks for where it is not sure


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_INTERVAL)
    os._exit(0)


def main() -> None:
    """``python -m daskreg.cluster.compile_ahead PARENT``, with a Rehearsal on standard input."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    set_thread_count(1)
    pickle.load(sys.stdin.buffer).run()


if __name__ == "__main__":
    main()

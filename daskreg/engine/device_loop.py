"""The deformable stage on a GPU: the same method in few passes, and no waiting for the host.

Losses, the longest step, the clock stay on the device; the host reads them a fixed number of iterations later, so that its
decisions do not depend on who was faster. A launch from Python costs a hundred microseconds and more, a captured graph ten: one
rank replays a graph of two iterations, after which buffers have their roles again; several ranks, which have messages between
their passes, replay a graph for each part. A pass whose planes neighbours wait for computes those first; they travel while it
goes on with the others. Once an iteration, for the longest step, the host waits for the device and for the other ranks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from daskreg.engine.deformable import AT_REST, Loop
from daskreg.engine.fields import Fields
from daskreg.engine.halo import finish
from daskreg.engine.report import LevelReport, Progress, Watch
from daskreg.engine.sampler import Resident, Ring, at_once
from daskreg.errors import Diverged
from daskreg.kernels.adam import cuda as adam_cuda
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.composition import cuda as composition_cuda
from daskreg.kernels.device import host
from daskreg.kernels.smoothing.cpu import gaussian_norms
from daskreg.kernels.smoothing.cuda import FARTHEST
from daskreg.optimizers.adam import rates
from daskreg.optimizers.stopping import Plateau
from daskreg.similarity import LocalCorrelation, MutualInformation
from daskreg.similarity.lncc.cuda import launch as lncc_cuda
from daskreg.similarity.mse import cuda as mse_cuda
from daskreg.similarity.mutual_information import cuda as mi_cuda

LAG = 6  # iterations that are under way when the host decides: enough to keep the device busy
LOOKS = ("look", "ring", "pull back", "difference")  # parts that read the moving image: captured anew when it has moved
WIDEST = 2  # taps on one side of the filter that the composition takes along; wider ones go axis by axis


class DeviceLoop(Loop):
    """One level of the deformable stage on one rank and one GPU."""

    graphs: dict[tuple[str, int], Any]  # by part of an iteration, and whether it is an even one

    def run(self, fields: Fields, watch: Watch, keep: Callable[[Fields, LevelReport, float], None]) -> LevelReport:
        """As ``Loop.run``; decisions are taken every other iteration and know all losses but the last six."""
        report = LevelReport("deformable", self.level.scale, self.block.shape, list(fields.losses))
        start = time.perf_counter()
        self._prepare(report.losses)
        self.watch, self.comm.busy_wait = watch, True
        try:
            self.begin(fields)
            k = self._iterate(fields, report, keep)
            finish(self.coming)
            report.losses = self._known(k)
        finally:
            self.graphs, self.comm.busy_wait = {}, False
            self.sampler.play = at_once  # else both would hold each other, and memory until it is looked for
        self._tell(watch, report.losses)
        self.block.device.mark()
        report.seconds += time.perf_counter() - start
        return report

    def _iterate(self, fields: Fields, report: LevelReport, keep: Callable[[Fields, LevelReport, float], None]) -> int:
        """All iterations but for a reason that ``report.stopped`` tells; how many have a loss."""
        plateau, k = Plateau(self.stage.tolerance, self.stage.window), self.done
        while k < self.level.iterations:
            if k % 2 == 0:
                known = self._known(k - LAG)
                self._tell(self.watch, known)
                if asked := self.asked if self.comm.size > 1 else self.watch.asked():
                    report.losses = self._known(k)
                    keep(fields, report, asked)
                if plateau.reached(known):
                    report.stopped = "plateau"
                    return k
            count = self._advance(fields, k)
            if not count:
                report.stopped = "at rest"
                return k + 1
            k += count
        return k

    def _prepare(self, losses: list[float]) -> None:
        """Everything an iteration needs, on the device, for all iterations."""
        put, xp = self.block.device.put, self.block.device.xp
        t = self.level.iterations
        self.done, self.past, self.told = len(losses), list(losses), len(losses)
        table = [rates(self.stage.betas, k + 1, self.similarity.steep) for k in range(t)]
        self.rates = put(np.array(table, np.float32).reshape(t, 5))
        self.clock = put(np.array([self.done], np.int32))
        self.sums = xp.zeros(3, np.int64)  # one array, so that the host reads all of it at once
        self.totals, self.longest = self.sums[:2], self.sums[2:].view(np.float32)[:1]
        self.behind: Any = None  # the event behind the gradient that neighbours wait for
        self.loss, self.losses = xp.zeros(2, np.float64), xp.zeros(max(t, 1), np.float64)
        if isinstance(self.similarity, MutualInformation):
            size = self.similarity.bins**2
            self.counts, self.table = xp.zeros(size, np.int64), xp.zeros(size, np.float32)
        self.similarity.origin = self.block.first
        self.norms = [self._norms(s) for s in (self.stage.smooth_gradient, self.stage.smooth_warp, 0)]
        self.marks: deque[tuple[int, Any]] = deque()
        self.reader = xp.cuda.Stream(non_blocking=True)
        self.graphs, self.sampler.play = {}, self._play
        self.launched = 0  # iterations from Python: what the first one compiles graphs can use
        self.fresh = 1  # the last of them in which looks may launch what no earlier one did

    def _norms(self, sigma: float) -> list[Any]:
        held, put = self.block.held, self.block.device.put
        z, y, x = (gaussian_norms(n, sigma) for n in self.block.shape)
        return [put(z[held.start : held.stop]), put(y), put(x)]

    # ---------------------------------------------------------------- what the host knows, and when

    def _mark(self, k: int) -> None:
        """Remember the moment at which the first k iterations are done."""
        self.marks.append((k, self._event()))

    def _known(self, k: int) -> list[float]:
        """The losses of the first k iterations; waits for them where only the device knows them yet."""
        while self.marks and self.marks[0][0] <= k:
            self.marks.popleft()[1].synchronize()
        if k > len(self.past):
            self.past += self.losses[len(self.past) : k].get(stream=self.reader).tolist()  # beside what is still under way
        return self.past[: max(k, 0)]  # no more after a resume, so that it stops where the whole run does

    def _tell(self, watch: Watch, known: list[float]) -> None:
        for k in range(self.told, len(known)):
            watch(Progress("deformable", self.level.scale, k + 1, self.level.iterations, known[k]))
            if not math.isfinite(known[k]):
                raise Diverged(f"the loss became {known[k]} at scale {self.level.scale}, iteration {k}; use a smaller step.")
        self.told = max(self.told, len(known))

    # ---------------------------------------------------------------- iterations

    def _advance(self, fields: Fields, k: int) -> int:
        """Start iteration k, or two where a graph can; how many, 0 where the images match from the start."""
        pair = not SIMULATED and self.comm.size == 1 and k % 2 == 0 and self.launched > 0 and k + 2 <= self.level.iterations
        if pair:
            self._replay("pair", partial(self._twice, fields))
        else:
            self.launched += 1
            self._gradient(fields)
            if not self._step(fields, k + 1):
                self._mark(k + 1)
                return 0
        self._mark(k + 1 + pair)
        return 1 + pair

    def _twice(self, fields: Fields) -> None:
        for _ in range(2):
            self._gradient(fields)
            self._step(fields, 2)

    def _play(self, name: str, launches: Callable[[], Any]) -> None:
        """A part of an iteration without messages, whose arrays are those of every other iteration."""
        plain = self.fresh if name.startswith(LOOKS) else 1
        if self.comm.size == 1 or SIMULATED or self.launched <= plain:
            launches()
        else:
            self._replay(name, launches)

    def _replay(self, name: str, launches: Callable[[], Any]) -> None:
        """As the graph of its launches, captured when they are first asked for."""
        key, stream = (name, self.launched % 2), self.block.device.xp.cuda.get_current_stream()
        if key not in self.graphs:
            self.graphs[key] = self._captured(launches)
        self.graphs[key].launch(stream)

    def _captured(self, launches: Callable[[], Any]) -> Any:
        stream = self.block.device.xp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            try:
                launches()
            finally:
                graph = stream.end_capture()
        return graph

    def _gradient(self, fields: Fields) -> None:
        """Loss at u, onto ``totals`` or ``loss``; dC/du, times N, into ``fields.g`` (step 1)."""
        match self.similarity:
            case LocalCorrelation():
                self._correlate(fields)
            case MutualInformation():
                self._inform(fields)
            case _:
                self._differ(fields)

    def _look(self, f: Fields) -> None:
        look = partial(self.sampler.look, place=self.place, u=f.u, moved=self.moved, weight=self.weights.seen, g=f.around)
        behind = None
        if self.sampler.keeps_gradient:
            look(self.block.box())  # with messages in it: it plays what lies between them
        else:
            behind = self._launch("look", look, self.similarity.reach, self.weights.seen is not None)
        self._play("weights", self.weights.combine)
        self._exchange_windows(behind)

    def _pull_back(self, f: Fields, slope: Any) -> None:
        """dC/du from dC/dmoved, as it is stored."""
        pull = partial(self.sampler.pull_back, place=self.place, u=f.u, slope=slope, g=f.gradient, kept=f.around)
        self.behind = self._launch("pull back", pull, self.gradient_reach)

    def _launch(self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False) -> Any:
        """Run on the own planes, first on those that neighbours wait for; the event behind these, None where all is one."""
        if whole or self.comm.size == 1:
            self._play(name, partial(kernel, self.block.box()))
            return None
        edges, others = self.block.edges_first(reach)
        self._play(f"{name}, edges", lambda: [kernel(box) for box in edges])
        behind = self._event()
        self._play(name, lambda: [kernel(box) for box in others])
        return behind

    def _event(self) -> Any:
        """Here on the device's way."""
        event = self.block.device.xp.cuda.Event(disable_timing=True)
        event.record()
        return event

    def _differ(self, f: Fields) -> None:
        s = self.sampler
        if self.weights.seen is not None:
            self._look(f)
            self._play("difference", partial(self._compare, [self.block.box()]))
            self._pull_back(f, self.moved)
        elif isinstance(s, Resident):
            self.behind = self._launch("difference", self._together(f, s), self.gradient_reach)
        else:
            assert isinstance(s, Ring)
            s.look(self.block.box(), self.place, f.u, self.moved, None, f.around, self._together(f, s.own))
            self._play("difference", lambda: self._compare(s.apart(self.block.box(), self.place)))
            pull = partial(s.turn, place=self.place, slope=self.moved, g=f.gradient, kept=f.around)
            self.behind = self._launch("pull back", pull, self.gradient_reach)

    def _together(self, f: Fields, image: Resident) -> Callable[[Shape], None]:
        """Looks, compares and pulls back in one pass."""
        arguments = *self.place, f.u, image.origin, image.planes, image.image, self.fixed, self.weights.array, f.gradient
        return lambda box: mse_cuda.difference(box, *arguments, self.totals)

    def _compare(self, boxes: list[Shape]) -> None:
        for box in boxes:
            mse_cuda.difference_of(box, self.fixed, self.weights.array, self.moved, self.totals)

    def _correlate(self, f: Fields) -> None:
        lncc = self.similarity
        assert isinstance(lncc, LocalCorrelation)
        self._look(f)
        self._play("windows", partial(self._exact if lncc.exact else self._centered, f, lncc))
        self._pull_back(f, self.moved if lncc.exact else f.slope)

    def _exact(self, f: Fields, lncc: LocalCorrelation) -> None:
        box, own, weight = self.block.box(), whole_box(self.block.box()), self.weights.array
        lncc.look(lncc.windows(box, self.moved), _planes(own), self.fixed, weight, self.moved, f.windows, self.totals)
        lncc_cuda.slope(own, lncc.origin, lncc.radius, f.windows, self.fixed, weight, self.moved)

    def _centered(self, f: Fields, lncc: LocalCorrelation) -> None:
        """Into a slope of its own: neighbours still read moved."""
        own = whole_box(self.block.box())
        lncc.look(own, _planes(own), self.fixed, self.weights.array, self.moved, f.slope, self.totals)

    def _inform(self, f: Fields) -> None:
        mi, own, weight = self.similarity, whole_box(self.block.box()), self.weights.array
        assert isinstance(mi, MutualInformation)
        self._look(f)
        self._play("count", partial(self._count, own, mi.bins))
        if self.comm.size > 1:
            self.counts.set(self.comm.sum_counts(host(self.counts)))
        self._play("table", lambda: mi_cuda.tabulate(mi.bins, self.counts, self.table, self.loss))
        self._play("slope", lambda: mi_cuda.slope(own, mi.bins, self.table, self.fixed, weight, self.moved))
        self._pull_back(f, self.moved)

    def _count(self, own: tuple[int, int, int, int], bins: int) -> None:
        self.counts.fill(0)
        mi_cuda.count(own, bins, self.fixed, self.weights.array, self.moved, self.counts)

    def _step(self, f: Fields, t: int) -> bool:
        """Smooth, Adam, bound, compose, smooth (steps 2 to 6); False, and no step, where the images match from the start."""
        finish(self.gradient_halo.start((f.gradient, self.block.first), after=self.behind))
        finish(self.coming)
        measured = self._reached(f, t)
        if len(self.block.own):
            self._play("direction", partial(self._direct, f))
        measured = None if measured is None else host(measured)  # one wait for this and what follows
        table = self._agree_on_length(t)
        if t == 1 and float(self.longest[0]) < AT_REST**2:
            self._settle()
            if table is not None:
                self._heard(table)
            return False
        behind = self._compose(f)
        self._play("settle", self._settle)
        if table is not None:  # the device is busy again
            self._heard(table)
            self.coming = self.warp_halo.start((f.u, self.block.first), after=behind)
        if measured is not None:
            self._foresee(measured)
        return True

    def _direct(self, f: Fields) -> None:
        """Adam's direction of the smoothed gradient, and how long it is (steps 2 to 4)."""
        g, w, b = self.gradient_filter, self.warp_filter, self.block
        n, together = _extent(b.box(w.reach)), g.reach <= FARTHEST
        fields = f.stepped(f.gradient if together else f.smoothed(g, w.reach))
        reach, weights, norms = (g.reach, g.weights, self.norms[0]) if together else (0, (np.float32(1),), self.norms[2])
        length, blocks, threads = adam_cuda.tiles(n, reach)
        filter_, constants = (n, np.uint32(len(b.held)), weights, *norms), (reach, *f.constants)
        adam_cuda.smooth_adam(constants, blocks, threads, length, *filter_, self.rates, self.clock, *fields, self.longest)

    def _compose(self, f: Fields) -> Any:
        """U after the step, smoothed (steps 5 and 6); u and g change roles where one pass does both. As ``_launch``."""
        w, b = self.warp_filter, self.block
        place = np.int32(b.first), np.int32(b.shape[0]), np.float32(0.5 * self.stage.step), self.longest
        fields = f.direction(self.rates, self.clock), f.u.reshape(-1), f.g.reshape(-1)

        def compose(box: Shape, reach: int, weights: Any, norms: list[Any]) -> None:
            n = _extent(box)
            length, blocks, threads = composition_cuda.warps(n, reach)
            filter_, constants = (n, np.uint32(len(b.held)), weights, *norms), (reach, *f.constants)
            composition_cuda.compose_smooth(constants, blocks, threads, length, *filter_, *place, *fields)

        if w.reach <= WIDEST:
            filtered = partial(compose, reach=w.reach, weights=w.weights, norms=self.norms[1])
            behind = self._launch("compose", filtered, self.reach)
            f.u, f.g = f.g, f.u
            return behind
        if len(b.own):
            self._play("compose", lambda: compose(b.box(w.reach), 0, (np.float32(1),), self.norms[2]))
        self._play("smooth", lambda: w.into(b.box(), f.g, f.scratch, f.u))
        return None

    def _settle(self) -> None:
        adam_cuda.settle((self._sign,), (1,), (1,), self.clock, self.totals, self.longest, self.loss, self.losses)

    @property
    def _sign(self) -> int:
        """How the loss follows from the totals, see ``adam_cuda.settle``."""
        return {LocalCorrelation: -1, MutualInformation: 0}.get(type(self.similarity), 1)

    # ---------------------------------------------------------------- between ranks

    def _reached(self, f: Fields, t: int) -> Any:
        """What a lookout measures of the displacement before the t-th step, on the device; None where it does not."""
        return self.lookout.measured(f.u) if self.lookout is not None and self.lookout.due(t) else None

    def _agree_on_length(self, t: int) -> Any:
        """The longest direction anywhere, for all; what the ranks said, None where there is one."""
        if self.comm.size == 1:
            return None
        heard = t % 2 == 0 and t < self.level.iterations  # where ``run`` acts on it: who asks forgets that it did
        mine, sums = np.empty(4), host(self.sums)
        mine[:2] = sums[2:].view(np.float32)[0], self.watch.asked() if heard else 0.0
        mine[2:] = sums[:2].view(np.float64)  # their bits
        table = self.comm.gather(mine)
        self.longest.set(table[:, 0].max(keepdims=True).astype(np.float32))
        return table

    def _heard(self, table: Any) -> None:
        """What else the ranks said: the loss, who asks for a checkpoint."""
        self.asked = float(table[:, 1].max())
        if self._sign:
            total, count = np.ascontiguousarray(table[:, 2:]).view(np.int64).sum(axis=0)
            self.past.append(self._sign * float(total) / max(float(count), 1.0))

    def _foresee(self, measured: Any) -> None:
        """Planes of the moving image for the iterations to come, as far as they are not there."""
        if self.lookout is not None and self.sampler.prepare(self.lookout.agreed(measured)):
            self.fresh = self.launched + 1
            self.graphs = {key: graph for key, graph in self.graphs.items() if not key[0].startswith(LOOKS)}


def _planes(own: tuple[int, int, int, int]) -> tuple[int, int]:
    """First plane of a box, and the one behind it."""
    return own[0], own[0] + own[1]


def _extent(box: Any) -> tuple[np.uint32, ...]:
    """A box as kernels take it."""
    return tuple(np.uint32(v) for v in whole_box(box))

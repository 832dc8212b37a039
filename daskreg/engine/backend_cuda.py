"""The deformable stage on a GPU: the host does not wait for the device.

Losses, the longest step and the clock stay on the device; the host reads them a fixed number of iterations later, so that its
decisions do not depend on timing. A launch from Python takes a hundred microseconds and more, that of a captured CUDA graph ten:
one rank replays a graph of two iterations, after which buffers have their roles again; several ranks, which have messages between
their kernels, replay a graph for each part. A kernel whose planes neighbours wait for computes those first; they are sent while
it continues with the others. Once an iteration, for the longest step, the host waits for the device and for the other ranks;
where messages are ordered on a stream (``comm.StreamOrdered``) it waits no more than that of one rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.backend import LAG, Backend, Iteration
from daskreg.engine.launch_trace import LaunchTrace
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.device import host
from daskreg.kernels.iteration_end import finish_iteration
from daskreg.optimizers.base import Optimizer


class CudaBackend(Backend):
    """One rank on one GPU."""

    lag = LAG
    recorder: LaunchTrace | None = None
    graphs: dict[tuple[str, int], Any]  # by part of an iteration, and whether it is an even one

    def prepare(self, optimizer: Optimizer, gradient_scale: float, loss_sign: int, asynchronous: bool) -> None:
        """See ``Backend.prepare``."""
        super().prepare(optimizer, gradient_scale, loss_sign, asynchronous)
        xp = self.block.device.xp
        self.loss_sign = loss_sign
        self.sums = xp.zeros(3, np.int64)  # one array, so that the host reads all of it at once
        self.totals, self.longest = self.sums[:2], self.sums[2:].view(np.float32)[:1]
        self.loss, self.on_device = xp.zeros(2, np.float64), xp.zeros(max(self.iterations, 1), np.float64)
        self.marks: deque[tuple[int, Any]] = deque()
        self.reader = xp.cuda.Stream(non_blocking=True)
        self.graphs, self.reading_moving = {}, set[str]()
        self.pairs = asynchronous and not SIMULATED and self.comm.size == 1
        self.launched = 0  # iterations from Python: what the first one compiles graphs can use
        self.fresh = 1  # the last of them in which kernels that read the moving image may be new
        self.comm.busy_wait = True
        self.recorder = LaunchTrace(xp, self.trace) if self.trace is not None and self.comm.size > 1 else None
        if self.comm.stream_ordered is not None:
            self.comm.stream_ordered.recorder = self.recorder

    def close(self) -> None:
        """Graphs hold the level's buffers."""
        self.graphs, self.comm.busy_wait = {}, False
        if self.recorder is not None:
            self.recorder.report()
        if self.comm.stream_ordered is not None:
            self.comm.stream_ordered.recorder = None
        self.block.device.record_peak()

    # ---------------------------------------------------------------- losses

    def known(self, k: int) -> list[float] | None:
        """Every other iteration, all but the last six."""
        if k % 2:
            return None
        if self.comm.stream_ordered is not None:  # first the others' hosts: an event of the device does not tell who is late
            self.asked = float(self.comm.max(np.array([self.watch.asked()]))[0])
        elif self.comm.size == 1:
            self.asked = self.watch.asked()
        return self.losses(k - LAG)

    def losses(self, k: int) -> list[float]:
        """Read beside the kernels that are still under way."""
        while self.marks and self.marks[0][0] <= k:
            self._wait(self.marks.popleft()[1])
        if k > len(self.past):
            self.past += self.on_device[len(self.past) : k].get(stream=self.reader).tolist()
        return self.past[: max(k, 0)]  # no more after a resume, so that it stops where the whole run does

    def later(self, array: Any) -> Callable[[], NDArray[Any]]:
        """Read beside the kernels that are launched after it."""
        event = self.event()

        def read() -> NDArray[Any]:
            self._wait(event)
            return np.asarray(array.get(stream=self.reader) if on_device(array) else array)

        return read

    def _wait(self, event: Any) -> None:
        if self.comm.stream_ordered is None:
            event.synchronize()
        else:
            self.comm.stream_ordered.wait(event)

    def record(self, loss: float) -> None:
        """To where ``settle`` reads it."""
        self.loss[:1] = loss

    def event(self) -> Any:
        """At the end of what was launched."""
        event = self.block.device.xp.cuda.Event(disable_timing=True)
        event.record()
        return event

    # ---------------------------------------------------------------- iterations and graphs

    def advance(self, iteration: Iteration, k: int) -> tuple[int, str | None]:
        """Two where a graph can."""
        reason = None
        pair = self.pairs and k % 2 == 0 and self.launched > 0 and k + 2 <= self.iterations
        if pair:
            self._replay("pair", lambda: [iteration(2) for _ in range(2)])
        else:
            self.launched += 1
            reason = iteration(k + 1)
        self.marks.append((k + 1 + pair, self.event()))
        return 1 + pair, reason

    def run(self, name: str, launches: Callable[[], Any], *, reads_moving: bool = False) -> None:
        """Their arrays are those of every other iteration."""
        if reads_moving:
            self.reading_moving.add(name)
        with nullcontext() if self.recorder is None else self.recorder.around(name):
            if self.comm.size == 1 or SIMULATED or self.launched <= (self.fresh if reads_moving else 1):
                launches()
            else:
                self._replay(name, launches)

    def launch(
        self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False, *, reads_moving: bool = False
    ) -> Any:
        """See ``Backend.launch``;  whole: in one launch.

        Two launches take a twentieth of an iteration longer, more than messages that are ordered on a stream.
        """
        if whole or self.comm.size == 1 or self.comm.stream_ordered is not None:
            self.run(name, partial(kernel, self.block.box()), reads_moving=reads_moving)
            return None
        edges, others = self.block.edges_first(reach)
        self.run(f"{name}, edges", lambda: [kernel(box) for box in edges], reads_moving=reads_moving)
        event = self.event()
        self.run(name, lambda: [kernel(box) for box in others], reads_moving=reads_moving)
        return event

    def moving_changed(self) -> None:
        """Capture anew what has them among its arguments."""
        self.fresh = self.launched + 1
        self.graphs = {key: graph for key, graph in self.graphs.items() if key[0] not in self.reading_moving}

    def _replay(self, name: str, launches: Callable[[], Any]) -> None:
        """Launch the graph of these launches, captured when they are first asked for."""
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

    # ---------------------------------------------------------------- between ranks

    def agree(self, t: int) -> Any:
        """The table of what the ranks report, for which the host waits for the device; None where it need not."""
        if self.comm.stream_ordered is not None:
            self.comm.stream_ordered.combine(self.totals, self.longest)
        if self.comm.stream_ordered is not None or self.comm.size == 1:
            return None
        start = time.perf_counter()
        mine, sums = np.empty(4), host(self.sums)
        mine[:2] = sums[2:].view(np.float32)[0], self.watch.asked() if t % 2 == 0 and self.listens(t) else 0.0
        mine[2:] = sums[:2].view(np.float64)  # their bits
        table = self.comm.gather(mine)
        if self.trace is not None:
            self.trace("host agrees", start, time.perf_counter())
        self.longest.set(table[:, 0].max(keepdims=True).astype(np.float32))
        return table

    def settle(self, agreed: Any) -> None:
        """On the device; then, while that is busy, what the ranks reported."""
        self.run("settle", self._settle)
        if agreed is None:
            return
        self.asked = float(agreed[:, 1].max())
        if self.loss_sign:
            total, count = np.ascontiguousarray(agreed[:, 2:]).view(np.int64).sum(axis=0)
            self.past.append(self.loss_sign * float(total) / max(float(count), 1.0))

    def _settle(self) -> None:
        finish_iteration((self.loss_sign,), (1,), (1,), self.clock, self.totals, self.longest, self.loss, self.on_device)

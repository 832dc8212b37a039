r"""Where the processor time of an iteration goes with fields in memory, apart from it and on disk: a CPU, LNCC (centre window).

    python benchmarks/sweep_cpu.py 240x400x400 --scratch /local/ssd
    python benchmarks/sweep_cpu.py 160 --places device,host,disk,"disk images" --storages float32,moments
    python benchmarks/sweep_cpu.py 256 --places device,disk --sweeps 1,2,4 --iterations 16

Seconds of processor time, of all threads: ``kernels``, with what their threads wait; ``copies`` to and from buffers; ``read`` and
``write``, of files, with checksums; ``rest``: Python of the loop. ``total`` is their sum, ``over_device`` that over the one of
``device``. Unlike the time on a clock these hardly depend on what else the machine does. ``gb``: read and written in files.
Prints one JSON line per case and writes ``sweep_cpu.json``. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from out_of_core import run, shape_of

from daskreg.engine import planes
from daskreg.engine.loop import Loop
from daskreg.engine.sweep import buffers, slabs, transfers
from daskreg.engine.sweep.loop import SweepLoop
from daskreg.kernels.compiler.launch import Kernel, RowKernel
from daskreg.storage.scratch import ScratchFolder

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "sweep_cpu.json"
NAMES = {"daskreg-copy": "copies", "daskreg-read-ahead": "read", "daskreg-scratch-read": "read"}
NAMES |= {"daskreg-write-behind": "write", "daskreg-scratch-write": "write"}
Seconds = Counter[str]


def of_threads() -> dict[int, float]:
    """Processor time of every thread by its number."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


class Clock:
    """Processor time by place, as it stood after each iteration, or each sweep of several."""

    def __init__(self) -> None:
        self.inside: Seconds = Counter()  # of the loop's own thread
        self.stood: list[Seconds] = []
        self.walls: list[tuple[float, int]] = []  # and iterations by then

    def within(self, place: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed where the loop's thread makes it."""

        def timed(*given: Any) -> Any:
            start = time.thread_time()
            found = call(*given)
            if threading.current_thread() is threading.main_thread():
                self.inside[place] += time.thread_time() - start
            return found

        return timed

    def iteration(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """An iteration, behind which the clock is read."""

        def timed(loop: Any, state: Any, backend: Any, *given: Any) -> Any:
            found = call(loop, state, backend, *given)
            self.stood.append(self.read())
            self.walls.append((time.perf_counter(), len(backend.past)))
            return found

        return timed

    def read(self) -> Seconds:
        """All threads until now."""
        names = {thread.native_id: thread.name.rpartition("_")[0] for thread in threading.enumerate()}
        own, found = threading.main_thread().native_id, Counter(self.inside)
        for number, seconds in of_threads().items():
            if number == own:
                found["rest"] += seconds - sum(self.inside.values())
            else:  # threads that are not Python's are those of kernels
                found[NAMES.get(names.get(number, ""), "rest" if number in names else "kernels")] += seconds
        return found

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a level runs."""
        kinds = (Kernel, "__call__", "kernels"), (RowKernel, "__call__", "kernels"), (buffers, "move_planes", "copies")
        kinds += tuple((of, "copy_planes", "copies") for of in (transfers, planes, slabs))
        patches = [patch.object(of, name, self.within(place, getattr(of, name))) for of, name, place in kinds]
        patches += [patch.object(of, "iteration", self.iteration(of.iteration)) for of in (Loop, SweepLoop)]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def an_iteration(self) -> dict[str, float]:
        """Means, without the first two sweeps: kernels are compiled, and the first one has one iteration in any case."""
        first, last, count = self.stood[1], self.stood[-1], self.walls[-1][1] - self.walls[1][1]
        return {name: (last[name] - first[name]) / count for name in ("kernels", "copies", "read", "write", "rest")}


def case(given: argparse.Namespace, place: str, storage: str, scratch: ScratchFolder) -> dict[str, Any]:
    """One level."""
    state, _, images = place.partition(" ")
    given.images, clock, moved = ("disk" if images else "device"), Clock(), scratch.moved
    with clock.running():
        run(given, "lncc center", storage, state, given.iterations, scratch.allocate)
    seconds = clock.an_iteration()
    steps = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(clock.walls[1:])]
    row = {"shape": given.shape, "place": place, "storage": storage, "slab": given.slab, "iterations_per_sweep": given.together}
    row |= {name: round(value, 3) for name, value in seconds.items()} | {"total": round(sum(seconds.values()), 3)}
    return row | {"least_wall": round(min(steps), 3), "gb": round((scratch.moved - moved) / given.iterations / 1e9, 2)}


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=shape_of)
    parser.add_argument("--places", default="device,host,disk,disk images")
    parser.add_argument("--storages", default="float32")
    parser.add_argument("--slab", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--sweeps", default="1", help="iterations of a sweep, as in 1,2,4")
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    given = parser.parse_args()
    given.moving, given.device, given.quick, given.digest, rows = given.shape, "cpu", True, False, []
    with ScratchFolder(given.scratch) as scratch:
        for storage, together in product(given.storages.split(","), given.sweeps.split(",")):
            alone, given.together = 0.0, int(together)
            for place in given.places.split(","):
                row = case(given, place, storage, scratch)
                alone = row["total"] if place == "device" else alone
                row |= {"over_device": round(row["total"] / alone, 2)} if alone else {}
                rows.append(row)
                print(json.dumps(row), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

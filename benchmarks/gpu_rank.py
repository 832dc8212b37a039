"""The time of an iteration of one rank among several, on one GPU: its neighbours and the link to them are simulated.

    python benchmarks/gpu_rank.py 512 700                            # edges of a block; needs a GPU with CuPy and numba-cuda
    python benchmarks/gpu_rank.py 256x1024x1024 --losses lncc,mi     # the block of one of four ranks of 1024^3
    python benchmarks/gpu_rank.py 32 --device cpu --iterations 4,8   # a short run on a CPU

The rank does all that a rank does in a run: it computes halos, launches pass by pass, sends, receives and waits. All ranks
are alike: what comes from one side is what it sends to the other. A message arrives ``--latency`` plus its bytes over
``--bandwidth`` after both sides have posted it, and its copy shares the GPU's memory with the kernels, as a copy over NVLink
would. A sum takes ``--sum``, as over shared memory of one machine. A row therefore describes the program with links and
neighbours that are never late. ``alone``: a run of one rank with the same planes, including graphs;  ``ms``: one iteration,
from levels of two lengths, which excludes the fixed cost of a level;  ``efficiency``: alone / ms;  ``waits``: ms per
iteration that the host waits, by cause, which costs nothing while the device has work;  ``bytes``, ``alone_bytes``: GPU
memory per voxel of the block.
Prints one JSON line per row and writes ``gpu_rank.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.comm import Communicator, SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine.images import Image
from daskreg.engine.memory import trim
from daskreg.engine.rank import Rank
from daskreg.engine.report import Progress, Watch
from daskreg.grid import Grid
from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import Device
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_rank.json"
RANKS = 5  # the middle one is measured: windows of its neighbours do not end with the image
LOSSES: dict[str, Any] = {"mse": MSE(), "lncc center": LNCC(gradient="center"), "lncc": LNCC(), "mi": MI()}


class Mirror(Communicator):
    """A rank among others like it: what it sends a rank ahead comes from the one as far behind, over a link of given speed."""

    device_arrays = True

    def __init__(self, sum_: float, latency: float, bandwidth: float) -> None:
        super().__init__(RANKS // 2, [f"mirror {r}" for r in range(RANKS)])
        self.sum, self.latency, self.bandwidth = sum_, latency, bandwidth
        self.here: dict[int, deque[_Message]] = defaultdict(deque)
        self.asked: dict[int, deque[_Message]] = defaultdict(deque)
        self.waits: Counter[str] = Counter()
        self.stream: Any = None

    def _send(self, to: int, arrays: Any) -> Any:
        return self._meet((to - self.rank) % self.size, self.here, self.asked, _Message(self, arrays, "send"))

    def check(self, peer: int) -> None:
        """Nobody is lost."""

    def receive(self, source: int, into: Any) -> Any:
        return self._meet((self.rank - source) % self.size, self.asked, self.here, _Message(self, into, "receive"))

    def _meet(self, places: int, mine: Any, theirs: Any, message: _Message) -> _Message:
        """Start the transfer once both sides have given their arrays."""
        if not theirs[places]:
            mine[places].append(message)
            return message
        other = theirs[places].popleft()
        sent, got = (message, other) if message.name == "send" else (other, message)
        self._copy(sent.arrays, got.arrays)
        size = sum(a.nbytes for a in sent.arrays)
        message.due = other.due = time.perf_counter() + self.latency + size / self.bandwidth
        message.event = other.event = self._mark(sent.arrays)
        return message

    def _copy(self, sent: Any, got: Any) -> None:
        assert [a.shape for a in sent] == [a.shape for a in got]
        for a, b in zip(sent, got, strict=True):
            if on_device(a):
                with self._beside():
                    b[...] = a
            else:
                b[...] = a

    def _beside(self) -> Any:
        import cupy

        self.stream = self.stream or cupy.cuda.Stream(non_blocking=True, priority=-5)  # as a copy engine has its own way
        return self.stream

    def _mark(self, arrays: Any) -> Any:
        return self.stream.record() if any(on_device(a) for a in arrays) else None

    def gather(self, array: Any) -> Any:
        """As if all ranks had said the same."""
        start = time.perf_counter()
        while time.perf_counter() < start + self.sum:
            pass
        self.waits["sum"] += time.perf_counter() - start
        return np.stack([array] * self.size)


class Peak(Watch):
    """The peak of CuPy's pool while the loop ran."""

    held = 0

    def __call__(self, now: Progress) -> None:
        if "cupy" in sys.modules:
            self.held = max(self.held, sys.modules["cupy"].get_default_memory_pool().total_bytes())


class _Message:
    def __init__(self, comm: Mirror, arrays: Any, name: str) -> None:
        self.comm, self.arrays, self.name = comm, arrays, name
        self.due, self.event = math.inf, None

    def wait(self) -> None:
        start = time.perf_counter()
        if self.event is not None:
            self.event.synchronize()
        while time.perf_counter() < self.due:
            assert self.due < math.inf, "nobody sent this"
        self.comm.waits[self.name] += time.perf_counter() - start


def volume(shape: tuple[int, ...], xp: Any) -> tuple[Any, Any]:
    """Fixed and moving, in [0, 1], a few voxels apart, periodic along z."""
    from scipy import ndimage

    if xp is not np:
        from cupyx.scipy import ndimage
    noise = xp.random.default_rng(0).random(shape, dtype=xp.float32)
    image = ndimage.gaussian_filter(noise, 2.5, mode="wrap")
    del noise
    image -= image.min()
    image /= image.max()
    return image, xp.roll(image, (1, -1, 2), axis=(0, 1, 2))


def images(shape: tuple[int, ...], ranks: int, rims: tuple[int, int], xp: Any) -> tuple[Grid, tuple[Image, Image]]:
    """The grid of all ranks' planes, and the middle rank's part of both images."""
    grid = Grid((shape[0] * ranks, *shape[1:]))
    plan = make_plan(grid, grid, Config(stages=(Deformable(),)), workers=ranks)
    rank, made = ranks // 2, []
    for voxels, partition, rim in zip(volume(shape, xp), (plan.partition, plan.shards), rims, strict=True):
        held = partition.around(rank, rim)
        at = (xp.arange(held.start, held.stop) - partition[rank].start) % shape[0]
        made.append(Image(voxels if len(held) == shape[0] else voxels[at], grid, partition, held, None, rank, rim))
    return grid, (made[0], made[1])


def run(
    shape: tuple[int, ...], stage: Deformable, given: argparse.Namespace, ranks: int, residency: str
) -> tuple[float, Any, int]:
    """Seconds of the stage's level, the waits, and the peak of CuPy's pool."""
    xp: Any = np
    if given.device == "cuda":
        import cupy as xp
    config = Config(stages=(stage,), percentiles=(0, 100))
    grid = Grid((shape[0] * ranks, *shape[1:]))
    plan = make_plan(grid, grid, config, workers=ranks, residency=residency)
    _, both = images(shape, ranks, plan.rims if ranks > 1 else (0, 0), xp)
    comm: Communicator = SingleRank()
    if ranks > 1:
        comm = Mirror(given.sum * 1e-6, given.latency * 1e-6, given.bandwidth * 1e9)
    trim()
    peak = Peak()
    rank = Rank(plan, both, np.eye(4), comm, peak)
    found = rank.run().levels[-1]
    assert found.losses[-1] < found.losses[0], found.losses[::8]
    return found.seconds, Counter(getattr(comm, "waits", {})), peak.held


def measured(
    shape: tuple[int, ...], name: str, given: argparse.Namespace, ranks: int, residency: str
) -> tuple[float, dict[str, float], float]:
    """Milliseconds per iteration, those of waiting, and bytes of GPU memory per voxel of the block."""
    times = [int(n) for n in given.iterations.split(",")]

    def level(iterations: int) -> Deformable:
        return Deformable(similarity=LOSSES[name], scales=(1,), iterations=(iterations,), tolerance=0, storage=given.storage)

    run(shape, level(6), given, ranks, residency)
    trim()
    held = run(shape, level(6), given, ranks, residency)[2]
    short, long = (min((run(shape, level(n), given, ranks, residency) for _ in range(2)), key=lambda r: r[0]) for n in times)
    trim()
    per = 1e3 / (times[1] - times[0])
    waits = {name: round((long[1][name] - short[1][name]) * per, 3) for name in long[1]}
    return (long[0] - short[0]) * per, waits, round(held / math.prod(shape), 1)


def _device(given: argparse.Namespace) -> str:
    return Device(given.device).name


def block_of(text: str) -> tuple[int, ...]:
    """Planes, rows and columns of a block, given as one edge or as three."""
    edges = [int(n) for n in text.split("x")]
    return tuple(edges * 3 if len(edges) == 1 else edges)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("blocks", nargs="*", default=["256"], help="edges, or planes x rows x columns")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--residencies", default="window,ring", help="empty: a rank alone")
    parser.add_argument("--sum", type=float, default=10, help="microseconds of a sum")
    parser.add_argument("--latency", type=float, default=30, help="microseconds of a message")
    parser.add_argument("--bandwidth", type=float, default=300, help="GB/s of the link, each way")
    parser.add_argument("--iterations", default="32,64", help="of the two levels whose difference counts")
    parser.add_argument("--storage", default="float32")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args(given)


def main() -> None:
    given, rows = arguments(), []
    for block, name in itertools.product(given.blocks, given.losses.split(",")):
        shape = block_of(block)
        alone, _, held = measured(shape, name, given, 1, "replicate")
        common = {"block": block, "case": name, "storage": given.storage, "alone": round(alone, 3), "alone_bytes": held}
        common |= {"sum_us": given.sum, "latency_us": given.latency, "GB/s": given.bandwidth, "device": _device(given)}
        if not given.residencies:
            rows.append(common)
            print(json.dumps(common), flush=True)
        for residency in filter(None, given.residencies.split(",")):
            ms, waits, held = measured(shape, name, given, RANKS, residency)
            rows.append({**common, "residency": residency, "ms": round(ms, 3), "efficiency": round(alone / ms, 3),
                         "bytes": held, "waits": waits})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

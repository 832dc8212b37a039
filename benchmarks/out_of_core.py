r"""An iteration with the fields in the machine's memory or on disk, beside the same on the device, the links' rates and the bits.

    python benchmarks/out_of_core.py 512 --states device,host --losses "mse,lncc center,mi" --storages float32,mixed
    python benchmarks/out_of_core.py 1024 --states host,disk --images host --scratch /fast --pool 20   # on a GPU limited to 20 GB
    python benchmarks/out_of_core.py 1278x1760x1760 --moving 800 --states host --images host --losses "lncc center" \
        --storages mixed --slab 48 --quick --iterations 4
    python benchmarks/out_of_core.py 160 --device cpu
    python benchmarks/out_of_core.py 320 --device cpu --states disk --losses "lncc center" --sweeps 1,2,4 --quick --iterations 24

``ms``: one iteration at full resolution, the time of a level of ``--iterations`` minus that of one of half as many, over the
difference, or with ``--quick`` the mean of all iterations but the first; ``bytes_read``, ``bytes_written``: what an iteration
has to bring to the device and back, images included where they are elsewhere, a mean where a sweep has several; ``link_ms``,
``disk_ms``: the time of these at the rates of the link, and of the disk, measured in this run; ``over_bound``: the time over the
largest of them and of the iteration on the device, where that was measured too; ``waited_s``: what the host waits for transfers
an iteration; ``peak``: bytes of CuPy's pool. Prints one JSON line per case and writes ``out_of_core.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np

os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.comm import SingleRank
from daskreg.config import Config, Deformable
from daskreg.engine.images import Image, LevelPlanes
from daskreg.engine.memory import trim
from daskreg.engine.planes import ArrayPlanes, allocator, pieces, piecewise
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.engine.stored_images import StoredImage
from daskreg.engine.sweep.loop import SweepLoop
from daskreg.grid import Grid, Span
from daskreg.kernels import device as devices
from daskreg.kernels.device import Device
from daskreg.kernels.page_locked import page_locked_zeros
from daskreg.planning import make_plan
from daskreg.planning.memory import image_bytes, swept_bytes
from daskreg.similarity import LNCC, MI, MSE
from daskreg.storage.scratch import READERS, WRITERS, ScratchField, ScratchFolder

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "out_of_core.json"
LOSSES: dict[str, Any] = {"mse": MSE(), "lncc center": LNCC(radius=3, gradient="center"), "lncc": LNCC(radius=2), "mi": MI()}


def volume(shape: tuple[int, ...], device: Device, shift: float) -> Any:
    """Waves in [0, 1], made plane by plane on the device: another phase for the moving image."""
    xp = device.xp
    made = xp.empty(shape, xp.float32)
    axes = [xp.linspace(0, 24, n, dtype=xp.float32) + shift * 24 / n for n in shape]
    y, x = axes[1][:, None], axes[2][None, :]
    for z in range(shape[0]):
        a = axes[0][z]
        made[z] = 0.5 + 0.2 * xp.sin(1.7 * x + xp.cos(y)) * xp.sin(1.3 * y + a) + 0.2 * xp.sin(2.1 * a + x) * xp.cos(0.7 * y)
    return made


def run(given: Any, name: str, storage: Any, state: str, iterations: int, scratch: Any) -> tuple[float, str | None, Any]:
    """Seconds of the level, the digest of its displacement where one is asked for, and its plan."""
    device = Device(given.device)
    device.use()
    of_level: dict[str, Any] = {"scales": (1,), "iterations": (iterations,), "tolerance": 0}
    stage = Deformable(similarity=LOSSES[name], storage=storage, iterations_per_sweep=given.together, **of_level)
    grid, other = Grid(given.shape), Grid(given.moving, tuple(f / m for f, m in zip(given.shape, given.moving, strict=True)))
    plan = make_plan(grid, other, Config(stages=(stage,), percentiles=(0, 100)), state=state)
    levels = tuple(tuple(replace(level, slab=given.slab) for level in stage_) for stage_ in plan.levels)
    plan = replace(plan, levels=levels)
    if given.images != "device" and state != "device":
        plan = replace(plan, images=given.images, levels=tuple(tuple(replace(v, images=given.images) for v in s) for s in levels))
    halves = storage == "mixed" and device.kind == "cuda"
    pair = ((given.shape, 0, grid), (given.moving, 1.5, other))
    images = tuple(image(volume(shape, device, shift), its, plan.images, device, scratch, halves) for shape, shift, its in pair)
    rank = Rank(plan, images, np.eye(4), SingleRank(), Watch(), scratch=scratch)
    found = rank.run()
    wanted = given.digest or not given.quick
    digest = digest_of(found.displacement, Span(0, given.shape[0])) if wanted else None
    seconds = found.levels[-1].seconds
    del found, rank, images
    trim()
    return seconds, digest, plan


def digest_of(field: Any, planes: Span) -> str:
    """Of the digests of pieces of a field, by several threads."""
    whole, pending = hashlib.sha256(), deque[Any]()
    with ThreadPoolExecutor() as pool:
        for _, part in piecewise(field, planes):
            pending.append(pool.submit(lambda data: hashlib.sha256(data).digest(), part.reshape(-1).view(np.uint8).data))
            while len(pending) > 64:
                whole.update(pending.popleft().result())
        for one in pending:
            whole.update(one.result())
    return whole.hexdigest()[:16]


def image(voxels: Any, grid: Grid, where: str, device: Device, scratch: Any, half: bool) -> Image:
    """Where it is to be."""
    whole = Image.whole(voxels, grid)
    if where == "device":
        return whole
    if half:
        whole.round()
        whole.hold(half=True)
    span, allocate = Span(0, grid.shape[0]), allocator(where, device, scratch)
    planes = allocate(1, span, grid.shape[1:], whole.voxels.dtype)
    for some in pieces(span, 4 * grid.shape[1] * grid.shape[2]):
        planes.write(some, whole.voxels[None, some.start : some.stop])
    nothing = device.xp.empty((0, *grid.shape[1:]), np.float32)
    return StoredImage(nothing, grid, whole.partition, whole.held, full=LevelPlanes(planes, None), allocate=allocate)


def link_rates(device: Device) -> dict[str, float]:
    """GB/s of page-locked memory to the device and back, at once: each way."""
    if device.kind == "cpu":
        return {}
    import cupy

    n = 1 << 28
    host = [ArrayPlanes.page_locked(1, Span(0, 1), (1, n // 4)) for _ in range(2)]
    there, streams = [cupy.empty(n // 4, cupy.float32) for _ in range(2)], [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    start = time.perf_counter()
    for _ in range(8):
        there[0].set(host[0].array.ravel(), stream=streams[0])
        there[1].get(out=host[1].array.ravel(), stream=streams[1], blocking=False)
    for s in streams:
        s.synchronize()
    took = time.perf_counter() - start
    del host
    start = time.perf_counter()
    kept = page_locked_zeros((8, 1 << 30), np.uint8)
    locked = kept.size / (time.perf_counter() - start)
    return {"gb_per_s_each_way": round(8 * n / took / 1e9, 1), "page_locked_gb_per_s": round(locked / 1e9, 1)}


def disk_rates(folder: Path, seconds: float = 5.0, most: int = 4 << 30) -> dict[str, float]:
    """GB/s of a folder's disk with transfers as fields have them, each way alone."""
    size = 8 << 20
    file = os.open(folder / ".out-of-core-rates", os.O_RDWR | os.O_CREAT | getattr(os, "O_DIRECT", 0), 0o600)
    os.unlink(folder / ".out-of-core-rates")

    def go(call: Any, threads: int, first: int, last: int) -> float:
        start, moved, places = time.perf_counter(), list[int](), iter(range(first, last, size))

        def work() -> None:
            memory = mmap.mmap(-1, size)
            for place in places:
                moved.append(call(file, [memory], place))
                if time.perf_counter() - start > seconds:
                    return

        with ThreadPoolExecutor(threads) as pool:
            for one in [pool.submit(work) for _ in range(threads)]:
                one.result()
        return round(sum(moved) / (time.perf_counter() - start) / 1e9, 2)

    written = [go(os.pwritev, WRITERS, 0, most) for _ in range(2)][1]  # as an iteration does: over what is there
    read = go(os.preadv, READERS, 0, min(most, os.fstat(file).st_size))
    os.close(file)
    return {"disk_write_gb_per_s": written, "disk_read_gb_per_s": read}


@contextmanager
def clocked() -> Iterator[list[tuple[float, float, float]]]:
    """When each sweep ended, how long it had waited for transfers by then, and the bytes that these moved."""
    ends, iteration = list[tuple[float, float, float]](), SweepLoop.iteration

    def timed(loop: SweepLoop, *given_: Any) -> Any:
        found = iteration(loop, *given_)
        all_ = [t for t in (loop.pipeline.transfers, getattr(loop.sampler, "transfers", None)) if t is not None]
        ends.append((time.perf_counter(), sum(t.waited for t in all_), sum(t.moved for t in all_)))
        return found

    with patch.object(SweepLoop, "iteration", timed):
        yield ends


@contextmanager
def paced(rate: float) -> Iterator[None]:
    """Files are read, and written, with no more than so many GB/s, as by a slower disk."""
    free, lock = {"read": 0.0, "write": 0.0}, Lock()

    def slowed(way: str) -> Any:
        call = getattr(ScratchField, way)

        def timed(field: Any, planes: Span, array: Any) -> None:
            start = time.perf_counter()
            call(field, planes, array)
            with lock:
                free[way] = due = max(free[way], start) + array.nbytes / rate / 1e9
            time.sleep(max(0.0, due - time.perf_counter()))

        return patch.object(ScratchField, way, timed)

    with slowed("read"), slowed("write"):
        yield


def case(given: Any, name: str, storage: Any, state: str, scratch: Any) -> dict[str, Any]:
    """Milliseconds of an iteration."""
    n, timed = given.iterations, dict[str, Any]()
    limit(given, 0 if state == "device" else given.pool)
    start = time.perf_counter()
    if given.quick and state != "device":  # one run, timed from within
        with clocked() as ends:
            long, digest, plan = run(given, name, storage, state, n, scratch)
        took, waited, moved = ((last - first) / (n - 1) for first, last in zip(ends[0], ends[-1], strict=True))
        ms = 1e3 * took
        timed = {
            "sweeps_s": [round(b[0] - a[0], 2) for a, b in pairwise(ends)],
            "waited_s": round(waited, 2),
            "bytes_moved": int(moved),
        }
    else:
        run(given, name, storage, state, 1, scratch)
        short = run(given, name, storage, state, n // 2, scratch)[0]
        long, digest, plan = run(given, name, storage, state, n, scratch)
        ms = 1e3 * (long - short) / (n - n // 2)
    level, stage = plan.levels[0][0], plan.config.stages[0]
    row = {
        "shape": given.shape,
        "loss": name,
        "storage": storage,
        "state": state,
        "images": plan.images,
        "slab": given.slab,
        "iterations_per_sweep": given.together,
        "ms": round(ms, 2),
    }
    row |= {"level_s": round(long, 2), "case_s": round(time.perf_counter() - start, 1)} | timed
    row |= {} if digest is None else {"sha256": digest}
    passes = 1 if stage.similarity.separable else 2
    fields, images = swept_bytes(plan, stage, level), image_bytes(plan, stage, level) * (level.images != "device")
    if state != "device":
        row |= {"bytes_read": passes * (fields + images), "bytes_written": fields}
    if state == "disk":
        row["disk_bytes_read"] = passes * (fields + images * (level.images == "disk"))
    if given.device == "cuda":
        import cupy

        row["peak"] = int(Device("cuda").record_peak())
        row |= {"pool_gb": given.pool} if given.pool and state != "device" else {}
        row["card"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return row


def limit(given: Any, gigabytes: float | None) -> None:
    """What CuPy may take, and no peak so far."""
    if given.device == "cuda":
        import cupy

        cupy.get_default_memory_pool().set_limit(int((gigabytes or 0) * 1e9))
        devices._PEAKS.clear()


def bound(row: dict[str, Any], rates: dict[str, float], alone: dict[str, Any] | None) -> dict[str, Any]:
    """The time of a row's transfers, and its own over that, or over the time on the device where that is longer."""
    found = dict[str, Any]()
    if "gb_per_s_each_way" in rates:
        found["link_ms"] = max(row["bytes_read"], row["bytes_written"]) / rates["gb_per_s_each_way"] / 1e6
    if row["state"] == "disk":
        ways = (row["disk_bytes_read"], rates["disk_read_gb_per_s"]), (row["bytes_written"], rates["disk_write_gb_per_s"])
        found["disk_ms"] = max(count / rate / 1e6 for count, rate in ways)
    most = max([*found.values(), alone["ms"] if alone else 0])
    found = {name: round(ms, 2) for name, ms in found.items()} | ({"over_bound": round(row["ms"] / most, 2)} if most else {})
    if alone and "sha256" in row:
        found["same"] = row["sha256"] == alone["sha256"]
    return found


def shape_of(text: str) -> tuple[int, int, int]:
    """``512`` or ``1278x1760x1760``."""
    ends = [int(v) for v in text.split("x")]
    return tuple(ends * 3 if len(ends) == 1 else ends)  # type: ignore[return-value]


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=shape_of)
    parser.add_argument("--moving", type=shape_of)
    parser.add_argument("--states", default="device,host")
    parser.add_argument("--images", default="device", help="where both images are, unless the fields are on the device")
    parser.add_argument("--losses", default="mse,lncc center,mi")
    parser.add_argument("--storages", default="float32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slab", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    parser.add_argument("--pool", type=float, help="GB of a GPU's memory that CuPy may take")
    parser.add_argument("--quick", action="store_true", help="no digest; out of core a single run")
    parser.add_argument("--pace", type=float, help="GB/s of files, each way, where a slower disk is to be seen")
    parser.add_argument("--sweeps", default="1", help="iterations of a sweep, as in 1,2,4")
    parser.add_argument("--digest", action="store_true", help="with --quick too")
    given = parser.parse_args()
    given.moving = given.moving or given.shape
    rates, rows = link_rates(Device(given.device)), []
    if "disk" in given.states:
        rates |= disk_rates(Path(given.scratch))
    print(json.dumps(rates), flush=True)
    if given.pace:
        rates |= {"disk_write_gb_per_s": given.pace, "disk_read_gb_per_s": given.pace, "paced": True}
    with ScratchFolder(given.scratch) as folder, paced(given.pace) if given.pace else nullcontext():
        for name, storage, together in product(given.losses.split(","), given.storages.split(","), given.sweeps.split(",")):
            alone, given.together = None, int(together)
            for state in given.states.split(","):
                row = case(given, name, storage, state, folder.allocate)
                if state == "device":
                    alone = row
                else:
                    row |= bound(row, rates, alone)
                rows.append(row)
                print(json.dumps(row), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"rates": rates, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

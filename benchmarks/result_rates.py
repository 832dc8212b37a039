"""Rates of reading and writing on this machine beside what limits them: memory, file system, codecs, and the copies of a GPU.

    python benchmarks/result_rates.py --edge 512 --folder /dev/shm --device cuda

Prints GB/s. Rates of codecs, reading and writing count voxels as they are in memory, those of files count bytes of files. Each
limit is measured with one thread and with all cores. "fresh" is memory that this process has not touched before: in a virtual
machine it is what its host has to provide. ``write`` is the part of a run of that name, without the sampling of the moved image.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc

from daskreg import Grid, machine
from daskreg.cluster import image_reader, result_writer
from daskreg.cluster.result_writer import ResultWriter, cast, chunk_rows, to_world
from daskreg.comm import SingleRank
from daskreg.grid import Partition, Span
from daskreg.kernels.device import Device
from daskreg.storage import RunStore, open_volume
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED
from daskreg.storage.zarr.pyramid import FIELD_CODEC, IMAGE_CODEC

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "result_rates.json"
CHUNK = 64
PIECE = 64 << 20  # bytes per thread and repetition


def seconds(job: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def rate(threads: int, size: int, job: Callable[[int], Any], times: int = 3) -> float:
    """GB/s of ``threads`` that each handle ``size`` bytes ``times`` times; the first time is not counted."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(job, range(threads)))
        taken = seconds(lambda: list(pool.map(job, list(range(threads)) * times)))
    return threads * times * size / 1e9 / taken


def first_touch(threads: int, size: int) -> float:
    """GB/s of zeroed pages that the system gives to a process."""

    def touch(_: int) -> None:
        with mmap.mmap(-1, size) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            view = np.frombuffer(memory, np.uint8)
            view[:: mmap.PAGESIZE] = 1
            del view

    with ThreadPoolExecutor(threads) as pool:
        return threads * size / 1e9 / seconds(lambda: list(pool.map(touch, range(threads))))


def copies(threads: int) -> float:
    """GB/s written by copies from one place of memory to another."""
    pairs = [(np.ones(PIECE, np.uint8), np.ones(PIECE, np.uint8)) for _ in range(threads)]
    return rate(threads, PIECE, lambda k: np.copyto(*pairs[k]))


def field(shape: tuple[int, ...], xp: Any = np) -> Any:
    """A displacement (3, Z, Y, X) in mm: waves, and noise in the lower bits as an optimizer leaves it."""
    rng = xp.random.default_rng(0)
    z, y, x = (xp.arange(n, dtype=np.float32).reshape([-1 if k == b else 1 for k in range(3)]) for b, n in enumerate(shape))
    u = xp.empty((3, *shape), np.float32)
    for k in range(3):
        u[k] = 4 * xp.sin((z + 2 * y + 3 * x) / (60 + 10 * k)) * xp.cos(y / 80 - x / 90)
        for plane in u[k]:
            plane += xp.float32(1e-3) * rng.standard_normal(plane.shape, dtype=np.float32)
    return u


def texture(shape: tuple[int, ...], xp: Any = np) -> Any:
    """A float32 image with the values of uint16: smooth, with noise."""
    rng = xp.random.default_rng(1)
    z, y, x = (xp.arange(n, dtype=np.float32).reshape([-1 if k == b else 1 for k in range(3)]) for b, n in enumerate(shape))
    found = 8000 + 6000 * xp.sin(z / 30 + x / 40) * xp.cos(y / 50)
    for plane in found:
        plane += 200 * rng.standard_normal(plane.shape, dtype=np.float32)
    return found


def codec(threads: int, voxels: np.ndarray, options: dict[str, Any]) -> tuple[float, float, float]:
    """GB/s of encoding and decoding a chunk, and by how much it becomes smaller."""
    numcodecs.blosc.use_threads = False
    coder = blosc.Blosc(**options, shuffle=blosc.SHUFFLE)
    coded, repeat = coder.encode(voxels), max(1, PIECE // voxels.nbytes)
    encode = rate(threads, repeat * voxels.nbytes, lambda _: [coder.encode(voxels) for _ in range(repeat)])
    room = [np.empty_like(voxels) for _ in range(threads)]
    decode = rate(threads, repeat * voxels.nbytes, lambda k: [coder.decode(coded, room[k]) for _ in range(repeat)])
    return encode, decode, voxels.nbytes / len(coded)


def files(folder: Path, threads: int, size: int, count: int) -> tuple[float, float, float]:
    """GB/s of writing new files, of writing them again after they were deleted, and of reading them."""
    content = os.urandom(size)
    names = [folder / f"{k}" for k in range(count)]

    def write(name: Path) -> None:
        name.write_bytes(content)

    def read(name: Path) -> None:
        name.read_bytes()

    with ThreadPoolExecutor(threads) as pool:
        jobs = (write, Path.unlink, write, read, Path.unlink)
        taken = [seconds(partial(_each, pool, job, names)) for job in jobs]
    fresh, _, again, found, _ = (count * size / 1e9 / t for t in taken)
    return fresh, again, found


def _each(pool: ThreadPoolExecutor, job: Callable[[Path], Any], names: list[Path]) -> None:
    list(pool.map(job, names))


def limits(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Of the processor, the memory and the file system."""
    found: dict[str, Any] = {}
    voxels = field((CHUNK,) * 3)
    image = texture((CHUNK,) * 3).astype(np.uint16)
    for threads in sorted({1, machine.cores().value}):
        row: dict[str, Any] = {"memory fresh": first_touch(threads, int(gigabytes * 1e9 / threads))}
        row |= {"memory again": first_touch(threads, int(gigabytes * 1e9 / threads)), "memory copy": copies(threads)}
        for name, chunk, options in (("field", voxels, FIELD_CODEC), ("image", image, IMAGE_CODEC)):
            row[f"{name} encode"], row[f"{name} decode"], row[f"{name} ratio"] = codec(threads, chunk, options)
        size = int(voxels.nbytes / row["field ratio"])
        names = ("file write fresh", "file write again", "file read")
        row |= dict(zip(names, files(folder, threads, size, int(gigabytes * 1e9 / size)), strict=True))
        found[f"{threads} threads"] = row
    return found


def gpu_copies() -> dict[str, float]:
    """Between host and device: from ordinary and from page-locked memory; and within the device, bytes read and written."""
    import cupy
    import cupyx

    size = 1 << 30
    there, plain, locked = cupy.zeros(size, np.uint8), np.ones(size, np.uint8), cupyx.empty_pinned(size, np.uint8)
    locked[:] = 1
    other = cupy.zeros(size, np.uint8)

    def timed(job: Callable[[], Any], moved: int = size) -> float:
        job()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(3):
            job()
        cupy.cuda.Device().synchronize()
        return 3 * moved / 1e9 / (time.perf_counter() - start)

    return {
        "to device": timed(lambda: there.set(plain)),
        "to device, page-locked": timed(lambda: there.set(locked)),
        "to host": timed(lambda: there.get(out=plain)),
        "to host, page-locked": timed(lambda: there.get(out=locked)),
        "device copy": timed(lambda: cupy.copyto(other, there), 2 * size),
    }


@contextmanager
def watched(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of all threads in the parts of writing."""
    parts = [
        (RunStore, "write_stored"),
        (RunStore, "as_stored"),
        (result_writer.CoarseRows, "add"),
        (result_writer, "page_locked"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name in parts if hasattr(owner, name)]
    for owner, name, function in kept:
        setattr(owner, name, _counted(function, name, spent))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def _counted(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    return call


def writing(folder: Path, u: Any, image: Any, device: Device) -> dict[str, Any]:
    """Both images of a run from arrays on the device."""
    grid = Grid(u.shape[1:], (0.5, 0.5, 0.5), unit="millimeter")
    store = RunStore.create(folder / "run.zarr", fixed=grid, moving=grid)
    store.create_image(DISPLACEMENT, grid, np.float32, components=3, coarser=True)
    store.create_image(MOVED, grid, np.uint16, coarser=True)
    rows = chunk_rows(store.chunk(MOVED)[0], Partition(grid.shape[0], (Span(0, grid.shape[0]),)))
    spent: dict[str, float] = {}
    start, used = time.perf_counter(), time.process_time()
    with watched(spent), ResultWriter(store, (0, 1, 2), (0, 1, 2), rows, SingleRank()) as writer:
        for row, _ in rows:
            planes = slice(row.start, row.stop)
            writer.write(DISPLACEMENT, row, u[:, planes], to_world(grid, device))
            writer.write(MOVED, row, image[planes], lambda found: cast(found, np.dtype(np.uint16)))
        writer.finish()
    taken, busy = time.perf_counter() - start, time.process_time() - used
    stored = sum(f.stat().st_size for f in (folder / "run.zarr").rglob("*") if f.is_file())
    size = u.nbytes + image.size * 2
    return {"seconds": taken, "GB/s": size / 1e9 / taken, "files GB/s": stored / 1e9 / taken, "cores": busy / taken,
            "parts": {name: round(t, 2) for name, t in spent.items()}}  # fmt: skip


def reading(folder: Path, device: Device) -> dict[str, Any]:
    """The moved image of that run, as a run reads its images."""
    volume = open_volume(f"{folder / 'run.zarr'}/moved")
    size = volume.dtype.itemsize * int(np.prod(volume.shape))
    found: dict[str, Any] = {}
    for name in ("first", "again"):
        start, used = time.perf_counter(), time.process_time()
        voxels = image_reader._load(volume, Span(0, volume.shape[0]), device)
        if device.kind == "cuda":
            device.xp.cuda.Device().synchronize()
        taken, busy = time.perf_counter() - start, time.process_time() - used
        found[name] = {"seconds": taken, "GB/s": size / 1e9 / taken, "cores": busy / taken}
        del voxels
    return found


def show(title: str, rows: dict[str, Any]) -> None:
    """A line per number."""
    print(title)
    for name, value in rows.items():
        print(f"  {name:26}", f"{value:8.2f}" if isinstance(value, float) else value, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", help="where the files go (a temporary place by default)")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of memory and files that the limits are measured with")
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument(
        "--times", type=int, default=2, help="how often the run is written: from the second time on, memory is warm"
    )
    given = parser.parse_args()
    device = Device(given.device)
    device.use()
    row: dict[str, Any] = {"case": f"{given.edge}^3", "device": device.name, "cores": machine.cores().value}
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        if not given.no_limits:
            row["limits"] = limits(folder, given.gigabytes)
            for threads, found in row["limits"].items():
                show(f"limits, GB/s, {threads}", found)
        if given.device == "cuda":
            row["copies"] = gpu_copies()
            show("copies, GB/s", row["copies"])
        u, image = field((given.edge,) * 3, device.xp), texture((given.edge,) * 3, device.xp)
        for k in range(given.times):
            shutil.rmtree(folder / "run.zarr", ignore_errors=True)
            row[f"write {k + 1}"] = writing(folder, u, image, device)
            show(f"write {k + 1}", row[f"write {k + 1}"])
        del u, image
        row["read"] = reading(folder, device)
        for name, found in row["read"].items():
            show(f"read, {name}", found)
    finally:
        shutil.rmtree(folder)
    past = json.loads(OUT.read_text()) if OUT.exists() else []
    OUT.write_text(json.dumps([*past, row], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

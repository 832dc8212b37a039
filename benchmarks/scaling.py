"""The time of an iteration by the number of workers: strong and weak scaling, the links, and the engine before it had ranks.

    python benchmarks/scaling.py                    # everything, on this machine
    python benchmarks/scaling.py --parts strong,weak --sizes 1,2,4
    python benchmarks/scaling.py --parts before --data DIR    # also on DIR's brain pair

Every worker has one thread, so that the base, one worker of one thread, is fair; the row with more threads shows what they do
without ranks. ``seconds``: one iteration at the finest level, halos and sums included, the least of ``runs``, since other
work on the machine only adds to it. ``efficiency``: relative to ideal workers; ``efficiency_of_cores``: where there are more
workers than cores, relative to ideal workers on those cores, which is all that this machine can show. Runs alternate, so that
a slow minute affects all alike. Rows by ``part``: ``strong`` (one volume), ``weak`` (one block per worker), ``link`` (both
ways at once between two workers; seconds = latency + bytes / bandwidth), ``kernels`` (seconds per voxel of the samplers),
``crowded`` (slowdown of a run of one rank while every other core has another such run, which share only memory bandwidth),
``before`` (whole command lines of this engine on one worker and of revision e36090b, the last without ranks).
Writes ``benchmarks/results/scaling.json``, which ``scaling_model.py`` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(measure.ROOT))

from distributed import Client, LocalCluster

import daskreg
from daskreg import LNCC, MI, MSE, Deformable, machine
from daskreg.cluster import preload
from daskreg.cluster.worker_calls import workers_of
from daskreg.comm import Communicator, SingleRank, Timeouts, open_endpoint
from daskreg.engine.reach import SamplingMap
from daskreg.engine.ring import Ring
from daskreg.engine.ring_schedule import RingSchedule
from daskreg.engine.sampler import Resident
from daskreg.grid import Partition, Span
from daskreg.kernels.compiler.host_launch import set_thread_count
from daskreg.kernels.sampling.cpu import add_value_and_gradient
from daskreg.planning import RESIDENCIES
from daskreg.transforms.linear import linear_part, to_fixed_point
from tests import phantoms

Shape = tuple[int, int, int]
Volume = NDArray[np.float32]
LOSSES: dict[str, Any] = {"mse": MSE(), "lncc": LNCC(), "mi": MI()}
PARTS = ("link", "kernels", "crowded", "strong", "weak", "before")
BEFORE = "e36090b"  # the last revision whose engine knows no ranks
BUNDLED = ("quickstart_mni2009c_T1_2mm.nii.gz", "quickstart_colin27_T1_2mm.nii.gz")
BRAIN = ("mni152nlin6_T1_brain_1mm.nii.gz", "multipropreg_oasisatlas_T1_1mm.nii.gz")
MESSAGES = (8, 1 << 12, 1 << 16, 1 << 20, 1 << 23, 1 << 26)  # bytes
CORES = machine.cores().value


def versions() -> dict[str, str]:
    """Versions on which the figures depend."""
    found = {"daskreg": daskreg.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "numba", "dask", "distributed", "ucxx-cu13", "ucxx-cu12"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def cluster(workers: int) -> Iterator[Client]:
    """Worker processes of one thread each on this machine; a run takes as many of them as it needs."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0, preload=preload.MODULE
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers, timeout=120)
        yield client


@cache
def pair(shape: Shape) -> tuple[Volume, Volume]:
    """Fixed and moving, apart by a smooth warp of up to three voxels."""
    fixed, moving, _ = phantoms.known_warp_pair(shape, 3.0, 1, sigma=max(shape) / 4)
    return fixed, moving


def stages(loss: str, iterations: int) -> list[Any]:
    """Full resolution alone, with a fixed number of iterations."""
    return [Deformable(similarity=LOSSES[loss], scales=(1,), iterations=(iterations,), tolerance=0)]


def register(client: Client | None, images: tuple[Any, Any], loss: str, iterations: int, **use: Any) -> daskreg.Result:
    """A run whose result is discarded. Raises RuntimeError when a level ended early, since its figures would not compare."""
    result = daskreg.register(*images, stages(loss, iterations), client=client, checkpoint=None, **{"threads": 1, **use})
    done = len(result.report["levels"][-1]["losses"])
    if done != iterations:
        raise RuntimeError(f"{done} of {iterations} iterations were made; these images match from the start, take others.")
    return result


# --- strong and weak ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One point of a curve."""

    part: str
    loss: str
    shape: Shape
    workers: int
    residency: str
    threads: int = 1

    @property
    def case(self) -> str:
        size = "x".join(map(str, self.shape))
        many = f"{self.workers} x {self.threads} threads"
        return f"{self.part}, {self.loss}, {size}, {many}, {self.residency}"

    def ideal(self, cores: float) -> float:
        """The factor by which the time of the base is divided without losses, on a number of cores."""
        wanted = self.workers * self.threads
        return min(wanted, cores) / (1 if self.part == "strong" else wanted)


def specs(args: argparse.Namespace) -> list[Spec]:
    """Strong scaling of the first loss in full, of the others as far as the model needs; weak scaling of the first alone."""
    found = []
    for loss in args.losses if "strong" in args.parts else ():
        first = loss == args.losses[0]
        kinds, sizes = (RESIDENCIES, args.sizes[1:]) if first else (RESIDENCIES[1:], args.sizes[1:2])
        found += [Spec("strong", loss, args.shape, 1, "replicate", t) for t in sorted({1, CORES})]
        found += [Spec("strong", loss, args.shape, n, r) for n in sizes for r in kinds]
    for n in args.sizes if "weak" in args.parts else ():
        shape = (args.planes * n, *args.shape[1:])
        found += [Spec("weak", args.losses[0], shape, n, r) for r in (RESIDENCIES if n > 1 else RESIDENCIES[:1])]
    return found


def curves(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """All points, ``repeats`` times over, on one cluster; a point of several threads alone on its worker like the others."""
    points = specs(args)
    runs: dict[Spec, list[float]] = {s: [] for s in points}
    with cluster(max(args.sizes)) as client:
        for loss, residency in {(s.loss, s.residency) for s in points}:  # compiles, and maps the links
            once(client, Spec("strong", loss, args.shape, max(args.sizes), residency), 2, args.comm)
        for _ in range(args.repeats):
            for spec in points:
                runs[spec].append(once(client, spec, args.iterations, args.comm))
    for spec in points:
        measure.emit(_row(spec, runs, args), rows)


def once(client: Client | None, spec: Spec, iterations: int, comm: str) -> float:
    """Seconds an iteration at the finest level."""
    use = {"workers": spec.workers, "residency": spec.residency, "threads": spec.threads, "comm": comm}
    level = register(client, pair(spec.shape), spec.loss, iterations, **use).report["levels"][-1]
    return float(level["seconds"]) / len(level["losses"])


def _row(spec: Spec, runs: dict[Spec, list[float]], args: argparse.Namespace) -> dict[str, Any]:
    base = next(s for s in runs if (s.part, s.loss, s.workers, s.threads) == (spec.part, spec.loss, 1, 1))
    took, alone = min(runs[spec]), min(runs[base])
    gain = alone / took
    return {
        "case": spec.case, "program": "daskreg", "part": spec.part, "loss": spec.loss, "shape": spec.shape,
        "workers": spec.workers, "threads": spec.threads, "residency": spec.residency, "comm": args.comm, "cores": CORES,
        "seconds": round(took, 5), "runs": [round(s, 5) for s in runs[spec]], "base_seconds": round(alone, 5),
        "efficiency": round(gain / spec.ideal(np.inf), 3), "efficiency_of_cores": round(gain / spec.ideal(CORES), 3),
        "versions": versions(),
    }  # fmt: skip


# --- links --------------------------------------------------------------------------------------------------------------


def link(client: Client, kind: str, sizes: Sequence[int] = MESSAGES, repeats: int = 5) -> dict[int, float]:
    """Bytes -> seconds in which two workers exchange so many, both ways at once; the median over messages."""
    members = sorted(workers_of(client))[:2]
    try:
        found = client.run(_open, kind, f"link-{time.time_ns()}", members, workers=members)
        client.run(_connect, [found[a] for a in members], workers=members)
        took = {size: client.run(_swap, size, repeats, workers=members) for size in sizes}
    finally:
        client.run(_close, workers=members)
    return {size: max(seconds.values()) for size, seconds in took.items()}


async def _open(kind: Any, run: str, members: list[str], dask_worker: Any) -> Any:
    rank = members.index(dask_worker.address)
    dask_worker.benchmark = await open_endpoint(kind, run, rank, members, Timeouts(deadline=60), "127.0.0.1")
    return dask_worker.benchmark.address


async def _connect(addresses: list[Any], dask_worker: Any) -> None:
    await dask_worker.benchmark.connect(addresses, ["here"] * len(addresses))


async def _swap(size: int, repeats: int, dask_worker: Any) -> float:
    return await asyncio.to_thread(_swaps, dask_worker.benchmark.communicator, size, repeats)


async def _close(dask_worker: Any) -> None:
    endpoint = getattr(dask_worker, "benchmark", None)
    if endpoint is not None:
        await endpoint.close()


def _swaps(comm: Communicator, size: int, repeats: int) -> float:
    out, into, other = np.ones(size, np.uint8), np.zeros(size, np.uint8), 1 - comm.rank
    took = []
    for _ in range(repeats + 2):
        comm.barrier()
        start = time.perf_counter()
        comm.exchange([(other, [out])], [(other, [into])], "benchmark")
        took.append(time.perf_counter() - start)
    return median(took[2:])  # the first ones map memory


def links(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Latency from messages of up to 64 KiB, bandwidth from the two largest."""
    with cluster(2) as client:
        for kind in ("ucx", "tcp"):
            took = link(client, kind)
            less, most = sorted(took)[-2:]
            figures = {
                "latency": median(s for size, s in took.items() if size <= 1 << 16),
                "bandwidth": (most - less) / max(took[most] - took[less], 1e-9),
            }
            measured = {str(size): round(s, 6) for size, s in took.items()}
            row = {"case": f"link, {kind}", "program": "daskreg", "part": "link", "comm": kind, **figures}
            measure.emit({**row, "seconds_by_bytes": measured, "cores": CORES, "versions": versions()}, rows)


# --- kernels of the samplers --------------------------------------------------------------------------------------------


def kernels(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Seconds per voxel, one thread: value and gradient from resident planes, from a ring of one shard, and of one more shard."""
    set_thread_count(1)
    box, (_, moving) = args.shape, pair(args.shape)
    mapping = SamplingMap(0, to_fixed_point(np.eye(4)), linear_part(np.eye(4)))
    u, g = np.full((3, *box), 0.3, np.float32), np.zeros((3, *box), np.float32)
    moved = np.empty(box, np.float32)
    whole = Partition.of(box[0], 1)
    none, ring = Span(0, 0), Ring(moving, None, whole, whole.whole, SingleRank(), None)
    # as if every plane read other shards too
    ring.schedule = RingSchedule(none, (whole.whole,), ((whole.whole,),), (none,), (none,))
    samplers = {
        "resident": Resident(moving, None, box[0]),
        "ring_first": ring,
    }

    def value_and_gradient(sampler: Resident | Ring) -> None:
        sampler.sample(box, mapping, u, moved, None, g)
        sampler.pull_back(box, mapping, u, moved, g)

    jobs: dict[str, Callable[[], Any]] = {k: lambda s=s: value_and_gradient(s) for k, s in samplers.items()}  # type: ignore[misc]
    jobs["ring_pass"] = lambda: add_value_and_gradient(box, *mapping, u, 0, moving.shape[0], moving, moved, g)
    took = {name: _best_of(job, 7) / moved.size for name, job in jobs.items()}
    copy = 2 * moving.nbytes / _best_of(lambda: np.copyto(moved, moving), 7)
    row = {"case": "samplers, one thread", "program": "daskreg", "part": "kernels", "shape": box, "seconds_per_voxel": took}
    measure.emit({**row, "copy_bytes_per_second": copy, "cores": CORES, "versions": versions()}, rows)


def _best_of(job: Callable[[], Any], repeats: int) -> float:
    """Median seconds, after a first call that compiles."""
    job()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        took.append(time.perf_counter() - start)
    return median(took)


def crowded(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Seconds an iteration of one rank alone, and of as many as there are cores, each a run in a process of its own."""
    pools = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(CORES)]

    def together(count: int, spec: Spec, iterations: int) -> float:
        return median([f.result() for f in [pool.submit(once, None, spec, iterations, args.comm) for pool in pools[:count]]])

    try:
        for loss in args.losses:
            spec = Spec("crowded", loss, args.shape, 1, "replicate")
            together(CORES, spec, 2)  # compiles
            runs = [(together(1, spec, 2 * args.iterations), together(CORES, spec, 2 * args.iterations)) for _ in range(4)]
            alone, beside = (min(column) for column in zip(*runs, strict=True))
            row = {"case": f"crowded, {loss}", "program": "daskreg", "part": "crowded", "loss": loss, "shape": args.shape}
            figures = {"alone": round(alone, 5), "beside": round(beside, 5), "crowded": round(beside / alone, 3)}
            measure.emit({**row, **figures, "cores": CORES, "versions": versions()}, rows)
    finally:
        for pool in pools:
            pool.shutdown()


# --- the engine before --------------------------------------------------------------------------------------------------


def before(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Both engines, one worker with all cores, the same command lines, in alternation."""
    pairs = {"bundled 2 mm": [measure.ROOT / "daskreg" / "data" / name for name in BUNDLED]}
    if args.data:
        pairs["oasis->mni 1 mm"] = [args.data / name for name in BRAIN]
    with tempfile.TemporaryDirectory() as scratch:
        trees = {"daskreg": _revision("HEAD", Path(scratch) / "now") if args.head else measure.ROOT}
        trees[f"daskreg {BEFORE}"] = _revision(BEFORE, Path(scratch) / "before")
        for name, images in pairs.items():
            for program, runs in _alternately(trees, images, Path(scratch), args.repeats).items():
                wall, iteration, rss = (min(column) for column in zip(*runs, strict=True))
                row = {"case": f"before, {name}", "program": program, "part": "before", "workers": 1, "threads": CORES}
                figures = {"wall": wall, "seconds": round(iteration, 5), "peak_rss": int(rss), "runs": [r[0] for r in runs]}
                figures["runs_seconds"] = [round(r[1], 5) for r in runs]
                measure.emit({**row, **figures, "cores": CORES, "versions": versions()}, rows)


def _revision(name: str, folder: Path) -> Path:
    """A revision's package, unpacked; the working tree stays as it is."""
    archive = subprocess.run(["git", "archive", name, "daskreg"], cwd=measure.ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


Figures = tuple[float, float, float]  # wall seconds, seconds an iteration at the finest level, peak bytes


def _alternately(trees: dict[str, Path], images: list[Path], work: Path, repeats: int) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = {program: [] for program in trees}
    for k in range(repeats + 1):
        for program, tree in trees.items():
            figures = _command(tree, images, work)
            if k:  # the first compiles
                found[program].append(figures)
    return found


def _command(tree: Path, images: list[Path], work: Path) -> Figures:
    output = work / "run.zarr"
    command = [sys.executable, "-m", "daskreg.cli", "register", *map(str, images), "-o", str(output), "--overwrite"]
    env = {"PYTHONPATH": str(tree), "NUMBA_NUM_THREADS": str(CORES), "OMP_NUM_THREADS": str(CORES)}
    run = measure.watched(command, work / "log.txt", env)
    level = _report(output)["levels"][-1]
    return run.seconds, level["seconds"] / len(level["losses"]), float(run.peak_rss)


def _report(run: Path) -> dict[str, Any]:
    """The run's own report, read without either engine."""
    attributes: dict[str, Any] = json.loads((run / "zarr.json").read_text())["attributes"]
    found: dict[str, Any] = attributes["daskreg"]["provenance"]
    return found


# --- command line -------------------------------------------------------------------------------------------------------


def listed(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A comma-separated choice."""

    def parse(text: str) -> list[str]:
        words = [w for w in text.split(",") if w]
        if not words or set(words) - set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(known)}")
        return words

    return parse


def shape_of(text: str) -> Shape:
    """ZxYxX."""
    z, y, x = (int(n) for n in text.split("x"))
    return z, y, x


def sizes_of(text: str) -> list[int]:
    """Numbers of workers, the base first."""
    return sorted({1, *(int(n) for n in text.split(","))})


def main() -> None:
    """Measure the selected parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--losses", type=listed(list(LOSSES)), default=["lncc", "mse", "mi"], help="the first in full")
    parser.add_argument("--sizes", type=sizes_of, default=[1, 2, 3, 4], help="numbers of workers; 1 is always among them")
    parser.add_argument("--shape", type=shape_of, default=(160, 160, 160), help="ZxYxX, of strong scaling and the kernels")
    parser.add_argument("--planes", type=int, default=64, help="of a worker's block in weak scaling")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--comm", choices=("auto", "tcp", "ucx"), default="auto")
    parser.add_argument("--data", type=Path, default=None, help="folder of the brain pair, for the part 'before'")
    parser.add_argument("--head", action="store_true", help="'before' beside the last commit, not the working tree")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "scaling.json")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    steps = {"link": links, "kernels": kernels, "crowded": crowded, "before": before}
    for part in (p for p in PARTS if p in args.parts and p in steps):
        steps[part](args, rows)
        measure.save(rows, args.out)
    if {"strong", "weak"} & set(args.parts):
        curves(args, rows)
        measure.save(rows, args.out)


if __name__ == "__main__":
    main()

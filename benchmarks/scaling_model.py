"""Predicted seconds per iteration on 2 to 64 GPUs, and the same model with the figures of this machine beside its measurements.

    python benchmarks/scaling_model.py                     # both tables
    python benchmarks/scaling_model.py --drift 32 --latency 2e-5 --between 25e9

An iteration is
    compute   voxels of the block and of the halo that both sides compute, times seconds per voxel
  + halos     latency + bytes / bandwidth of the two blocking exchanges: moved (where the loss has a reach) and g; on GPUs
              what a pass over the block does not cover, since the planes that are sent are computed first
  + hidden    what the sampler does not cover of the halo of u (a fraction ``overlap`` of the shorter one is covered)
  + ring      for the planes that read more than their own shard, the extra cost of one pass per shard over sampling at once, and
              what the previous pass does not cover of each transfer, the first pass being that over the whole block;
              ``all shards``: the worst case, every plane reads every shard
  + sums      two gathers of ceil(log2 n) rounds: the loss, and the longest step; on GPUs of one host one over shared memory, two
              with MI
Every transfer of the ring is assumed to be posted one pass ahead. The slowest rank is one between two others, on the slowest
link. Seconds per voxel are measured where ``--kernels`` has them, else the budget: bytes per voxel and iteration over the
copy bandwidth, a floor that no program reaches; ``source`` says which.

``--kernels`` (benchmarks/results/gpu_iterations.json): results of gpu_iterations.py on an H200, the largest volume of each
loss.
``--scaling`` (benchmarks/results/scaling.json): the rows of all parts except before, as scaling.py writes them.
``--timeline`` (benchmarks/results/timeline.json): the mean of ``hidden_of_bare`` over ucx is the ``overlap`` on this machine.

Writes ``benchmarks/results/scaling_model.json``: ``predicted`` rows and ``checked`` rows (``error`` = predicted / measured -
1). Not in the model: launches (1.2 us each in a graph), checkpoints, imbalance of affine maps, two programs on one link.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import measure

NAMES = {"lncc exact": "lncc"}  # of losses there and here
VALUE, VECTOR = 4, 12  # bytes of a float32 and of three
GIB = 2**30
SAMPLE, STEP, WARP = 32, 72, 36  # bytes a voxel: sample and gradient; smooth, Adam, longest; compose, smooth
GRADIENT_TAPS, WARP_TAPS = 2, 1  # planes on each side that the two filters read
FIELDS = 72  # bytes a voxel held in all
RING_BUFFERS = 2  # shards under way
DRIFT = 16  # planes of the moving image that a block reaches beyond its own, each side
GPUS = (1, 2, 4, 8, 16, 32, 64)
RESIDENCIES = ("replicate", "window", "ring", "ring, all shards")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Loss:
    """extra: bytes a voxel beyond sampling, step and warp;  reach: planes of moved it reads around a voxel;

    again: planes on each side whose window factors both neighbours compute, at ``again_bytes`` a voxel;
    summed: bytes that every rank contributes to the sum, and that again for each of its planes.
    """

    name: str
    extra: int = 0
    reach: int = 0
    again: int = 0
    again_bytes: int = 0
    summed: int = 0
    summed_planes: int = 0

    @property
    def bytes(self) -> int:
        """A voxel and iteration."""
        return SAMPLE + STEP + WARP + self.extra


LOSSES = {
    "mse": Loss("mse", summed_planes=16),
    "lncc center": Loss("lncc center", extra=24, reach=2, summed_planes=16),
    "lncc": Loss("lncc", extra=56, reach=4, again=2, again_bytes=24, summed_planes=16),
    "mi": Loss("mi", extra=20, summed=32 * 32 * 8),
}


@dataclass(frozen=True)
class Link:
    """seconds = latency + bytes / bandwidth, each way at once."""

    latency: float
    bandwidth: float

    def seconds(self, size: float) -> float:
        return self.latency + size / self.bandwidth if size else 0.0


@dataclass(frozen=True)
class Sampling:
    """Seconds per voxel for value and gradient: from resident planes; from the first shard of a ring; from each further shard."""

    resident: float
    first: float
    further: float

    @classmethod
    def of_bandwidth(cls, copy: float) -> Sampling:
        """By bytes: the ring reads u and adds to moved and g in every pass, and turns g by the slope in the end."""
        each = VECTOR + VALUE + 2 * VALUE + 2 * VECTOR  # u, moving, moved, g
        begin, end = VECTOR + VALUE + VECTOR, VALUE + 2 * VECTOR  # where the domain is, g = 0;  g times slope
        return cls(SAMPLE / copy, (begin + each + end) / copy, each / copy)


@dataclass(frozen=True)
class Machine:
    """Where it runs: seconds a voxel by loss, links, what fits.

    host: ranks that share the near link;  cores: ranks that run at once, None for all;  crowded: how much slower each is when
    all run, memory being shared;  memory: bytes a rank may hold;  overlap: part of the shorter that goes beside the longer;
    ahead: planes that travel are computed first;  sum: seconds of a sum over memory that a host's ranks share, None without.
    """

    name: str
    voxel: dict[str, float]
    sampling: Sampling
    near: Link
    far: Link
    source: dict[str, str]
    host: int = 8
    cores: int | None = None
    crowded: float = 1.0
    memory: float = math.inf
    overlap: float = 1.0
    ahead: bool = False
    sum: float | None = None

    def link(self, ranks: int) -> Link:
        """The slowest link between two of the ranks."""
        return self.near if ranks <= self.host else self.far

    def slower(self, ranks: int) -> float:
        """What sharing cores and memory with the other ranks costs."""
        turns = ranks / min(ranks, self.cores) if self.cores else 1.0
        return turns * (self.crowded if ranks > 1 else 1.0)


@dataclass(frozen=True)
class Case:
    """A volume (Z, Y, X), cut along z; ``weak``: Z planes a rank instead of in all."""

    name: str
    shape: Shape
    weak: bool = False
    schedule: tuple[tuple[int, int], ...] = ((4, 200), (2, 100), (1, 50))  # scale, iterations

    def planes(self, ranks: int) -> int:
        """Of the whole volume."""
        return self.shape[0] * (ranks if self.weak else 1)

    def coarse(self, scale: int) -> Case:
        """The same at a coarser level."""
        z, y, x = (-(-n // scale) for n in self.shape)
        return replace(self, shape=(z, y, x))


CASES = (
    Case("512^3 a GPU", (512, 512, 512), weak=True),
    Case("1024^3", (1024, 1024, 1024)),
    Case("1760x1760x1278", (1760, 1760, 1278)),
)


@dataclass(frozen=True)
class Iteration:
    """Seconds, by what they go into; ``held``: bytes on a rank."""

    compute: float
    halos: float
    hidden: float
    ring: float
    sums: float
    held: float

    @property
    def total(self) -> float:
        return self.compute + self.halos + self.hidden + self.ring + self.sums


@dataclass(frozen=True)
class Block:
    """The work of one rank between two others in an iteration."""

    machine: Machine
    loss: Loss
    residency: str
    ranks: int
    planes: int  # its own
    plane: int  # voxels
    whole: int  # planes of the moving image
    drift: int = DRIFT

    @classmethod
    def of(cls, machine: Machine, case: Case, loss: Loss, residency: str, ranks: int, drift: int) -> Block:
        whole = case.planes(ranks)
        return cls(machine, loss, residency, ranks, -(-whole // ranks), case.shape[1] * case.shape[2], whole, drift)

    @property
    def sides(self) -> int:
        return min(2, self.ranks - 1)

    @property
    def voxels(self) -> int:
        return self.planes * self.plane

    @property
    def link(self) -> Link:
        return self.machine.link(self.ranks)

    def predict(self) -> Iteration:
        """See the docstring of the module."""
        if self.ranks == 1:
            return Iteration(self._compute(), 0.0, 0.0, 0.0, 0.0, self._held())
        looking = self.voxels * self.machine.sampling.resident * self.machine.slower(self.ranks)
        warp = self._exchange((WARP_TAPS + 1) * VECTOR)
        waited = self._exchange(self.loss.reach * VALUE), self._exchange((GRADIENT_TAPS + WARP_TAPS) * VECTOR)
        halos = sum(self._exposed(t, looking) if self.machine.ahead else t for t in waited)
        return Iteration(self._compute(), halos, self._exposed(warp, looking), self._ring(), self._sums(), self._held())

    def _compute(self) -> float:
        """Own voxels, and those of the halo that the step and the windows take in."""
        twice = self.sides * (WARP_TAPS * STEP + self.loss.again * self.loss.again_bytes) / self.loss.bytes
        each = self.machine.voxel[self.loss.name] * self.machine.slower(self.ranks)
        return each * (self.planes + twice) * self.plane

    def _exchange(self, per_voxel: int) -> float:
        """So many bytes for each voxel of a plane, to both neighbours at once."""
        return self.link.seconds(self.sides * per_voxel * self.plane)

    def _exposed(self, transfer: float, work: float) -> float:
        return max(0.0, transfer - self.machine.overlap * min(transfer, work))

    def _shards(self) -> list[int]:
        """Planes of each further shard that the block reaches, in the order of the ring."""
        if self.residency == "ring, all shards":
            return [self.planes] * (self.ranks - 1)
        return [min(self.drift, self.planes)] * self.sides if self.residency.startswith("ring") else []

    def _ring(self) -> float:
        """More than sampling from planes at hand."""
        shards, s = self._shards(), self.machine.sampling
        if not shards:
            return 0.0
        plane = self.plane * self.machine.slower(self.ranks)
        outer = min(sum(shards), self.planes)  # as many planes read another shard as are read of it
        passes = [(s.first * outer + s.resident * (self.planes - outer)) * plane, *[s.further * n * plane for n in shards]]
        transfers = [self.link.seconds(VALUE * planes * self.plane) for planes in shards]
        waits = sum(self._exposed(t, work) for t, work in zip(transfers, passes))
        return sum(passes) + waits - s.resident * self.planes * plane

    def _sums(self) -> float:
        if self.machine.sum is not None and self.ranks <= self.machine.host:
            return self.machine.sum * (2 if self.loss.name == "mi" else 1)
        rounds = math.ceil(math.log2(self.ranks))
        size = (self.ranks - 1) * (self.loss.summed + self.loss.summed_planes * self.planes)
        return 2 * rounds * self.link.latency + size / self.link.bandwidth

    def _held(self) -> float:
        """Bytes: fields and images of block and halo, and what of the moving image is not in them."""
        halo = self.sides * max(self.loss.reach, GRADIENT_TAPS + WARP_TAPS)
        shard = max(self._shards(), default=0)
        others = {"replicate": self.whole - self.planes, "window": self.sides * self.drift}.get(self.residency, 0)
        moving = others + RING_BUFFERS * shard
        return float(FIELDS * (self.planes + halo) + VALUE * moving) * self.plane


# --- machines -----------------------------------------------------------------------------------------------------------


def gpus(args: argparse.Namespace) -> Machine:
    """H200s: measured kernels where there are any, else the budget."""
    rows = [r for r in read(args.kernels) if "H200" in str(r.get("device", "")) and "ms" in r and r.get("storage") != "mixed"]
    largest = sorted(rows, key=lambda r: int(r["edge"]))
    timed = {NAMES.get(r["case"], r["case"]): r["ms"] / 1e3 / r["edge"] ** 3 for r in largest}
    voxel = {name: timed.get(name, loss.bytes / args.copy) for name, loss in LOSSES.items()}
    source = {name: "measured" if name in timed else "budget" for name in LOSSES}
    sampling, source["sampling"] = Sampling.of_bandwidth(args.copy), "budget"
    near, far = Link(args.latency, args.bandwidth), Link(args.latency, args.between)
    name = f"H200, copies {args.copy / 1e12:.2g} TB/s, links {args.bandwidth / 1e9:.0f} and {args.between / 1e9:.0f} GB/s"
    return Machine(name, voxel, sampling, near, far, source, args.host, memory=args.memory * GIB, ahead=True,
                   sum=args.sum)  # fmt: skip


def here(rows: Sequence[dict[str, Any]], timeline: Sequence[dict[str, Any]]) -> Machine | None:
    """This machine as ``scaling.py`` measured it: from one worker, and from the links. None where that is not there."""
    strong = [r for r in rows if r.get("part") == "strong"]
    alone = {r["loss"]: r["seconds"] / math.prod(r["shape"]) for r in strong if r["workers"] == r["threads"] == 1}
    kernels = [r["seconds_per_voxel"] for r in rows if r.get("part") == "kernels"]
    found = {r["comm"]: Link(r["latency"], r["bandwidth"]) for r in rows if r.get("part") == "link"}
    if not (alone and kernels and found):
        return None
    s, link = kernels[-1], found.get("ucx") or found["tcp"]
    sampling = Sampling(s["resident"], s["ring_first"], s["ring_pass"])
    hidden = [r["hidden_of_bare"] for r in timeline if r.get("comm") == "ucx" and r.get("hidden_of_bare") is not None]
    source = dict.fromkeys((*alone, "sampling"), "measured")
    one = strong[0]
    return Machine(
        one["machine"], alone, sampling, link, link, source, cores=one["cores"],
        crowded=crowding(rows), overlap=mean(hidden) if hidden else 1.0,
    )  # fmt: skip


def crowding(rows: Sequence[dict[str, Any]]) -> float:
    """Slowdown of a core beside the others, with or without ranks."""
    found = [r["crowded"] for r in rows if r.get("part") == "crowded"]
    return max(1.0, mean(found)) if found else 1.0


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a result; none where it was not measured."""
    return list(json.loads(path.read_text())) if path.exists() else []


# --- rows ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted:
    """A row of the table."""

    case: str
    loss: str
    residency: str
    gpus: int
    source: str
    milliseconds: float
    efficiency: float
    parts: dict[str, float] = field(default_factory=dict)
    held_gib: float = 0.0
    fits: bool = True
    schedule_seconds: float = 0.0


def predictions(machine: Machine, drift: int) -> Iterator[Predicted]:
    """All cases, losses, residencies and numbers of GPUs. Efficiency: against one GPU of unlimited memory."""
    for case, loss, residency, n in itertools.product(CASES, LOSSES.values(), RESIDENCIES, GPUS):
        if n == 1 and residency != "replicate":
            continue
        it = Block.of(machine, case, loss, residency, n, drift).predict()
        alone = Block.of(machine, case, loss, residency, 1, drift).predict().total
        parts = {name: round(s * 1e3, 3) for name, s in asdict(it).items() if name != "held"}
        source = machine.source[loss.name] + (f", ring {machine.source['sampling']}" if residency.startswith("ring") else "")
        yield Predicted(
            case.name, loss.name, residency, n, source, round(it.total * 1e3, 2),
            round(alone / it.total / (1 if case.weak else n), 3), parts, round(it.held / GIB, 1), it.held <= machine.memory,
            round(schedule(machine, case, loss, residency, n, drift), 1),
        )  # fmt: skip


def schedule(machine: Machine, case: Case, loss: Loss, residency: str, ranks: int, drift: int) -> float:
    """Seconds of the whole deformable stage, no level stopping early, without what lies between levels."""
    return sum(
        n * Block.of(machine, case.coarse(scale), loss, residency, ranks, -(-drift // scale)).predict().total
        for scale, n in case.schedule
    )


def checks(machine: Machine, rows: Sequence[dict[str, Any]], drift: int) -> Iterator[dict[str, Any]]:
    """Prediction beside measurement for every row of more than one worker, of losses whose base is there."""
    for r in rows:
        if r.get("part") not in ("strong", "weak") or r["workers"] == 1 or r["loss"] not in machine.voxel:
            continue
        case = Case(r["case"], tuple(r["shape"]))
        it = Block.of(machine, case, LOSSES[r["loss"]], r["residency"], r["workers"], drift).predict()
        parts = {name: round(s, 5) for name, s in asdict(it).items() if name != "held"}
        yield {
            "case": r["case"], "program": "model, checked", "workers": r["workers"], "cores": r["cores"],
            "predicted_seconds": round(it.total, 5), "measured_seconds": r["seconds"],
            "error": round(it.total / r["seconds"] - 1, 3), "parts": parts, "machine": r["machine"], "versions": r["versions"],
        }  # fmt: skip


def rows_of(found: Sequence[Predicted], machine: Machine) -> list[dict[str, Any]]:
    """One row for each case, loss and residency, with its GPUs as a list."""
    rows = []
    for (case, loss, residency), group in itertools.groupby(found, lambda p: (p.case, p.loss, p.residency)):
        points = [{k: v for k, v in asdict(p).items() if k not in ("case", "loss", "residency")} for p in group]
        key = {"case": f"{case}, {loss}, {residency}", "program": "model, predicted"}
        assumed = {"overlap": machine.overlap, "latency": machine.near.latency, "gpus_a_host": machine.host}
        rows.append({**key, "points": points, **assumed, "machine": machine.name, "python": platform.python_version()})
    return rows


# --- tables -------------------------------------------------------------------------------------------------------------


def predicted_table(found: Sequence[Predicted], machine: Machine) -> list[str]:
    """Milliseconds and, behind them, efficiency in per cent; brackets: does not fit."""
    head = f"{'milliseconds an iteration, efficiency %':<42}" + "".join(f"{n:>13}" for n in GPUS)
    lines = [f"model of {machine.name}", head]
    for (case, loss), group in itertools.groupby(found, lambda p: (p.case, p.loss)):
        points = list(group)
        lines.append(f"{case}, {loss} ({machine.source[loss]})")
        for residency in RESIDENCIES:
            cells = {p.gpus: p for p in points if p.residency == residency or p.gpus == 1}
            lines.append(f"  {residency:<40}" + "".join(f"{_cell(cells[n]):>13}" for n in GPUS))
    return lines


def _cell(p: Predicted) -> str:
    text = f"{p.milliseconds:.3g} {100 * p.efficiency:.0f}%"
    return text if p.fits else f"({text})"


def checked_table(rows: Sequence[dict[str, Any]], machine: Machine) -> list[str]:
    """Seconds beside seconds."""
    lines = [f"this machine, {machine.cores} cores, crowded {machine.crowded:.2f}, overlap {machine.overlap:.2f}"]
    lines.append(f"{'case':<58}{'predicted':>11}{'measured':>11}{'error':>9}")
    lines += [f"{r['case']:<58}{r['predicted_seconds']:>11.4f}{r['measured_seconds']:>11.4f}{r['error']:>+9.0%}" for r in rows]
    errors = [abs(r["error"]) for r in rows]
    return [*lines, f"median error {median(errors):.0%}, largest {max(errors):.0%}"] if errors else lines


def main() -> None:
    """Both tables, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy", type=float, default=4.1e12, help="bytes a second that a GPU copies (measured, H200)")
    parser.add_argument(
        "--latency", type=float, default=7e-5, help="seconds of a small message (measured, UCX, sums.py on an H200 host)"
    )
    parser.add_argument("--sum", type=float, default=1e-5, help="seconds of a sum over memory that ranks of a host share")
    parser.add_argument("--bandwidth", type=float, default=320e9, help="bytes a second each way within a host (measured, NVLink)")
    parser.add_argument("--between", type=float, default=50e9, help="bytes a second between hosts (assumed: 400 Gb/s a GPU)")
    parser.add_argument("--host", type=int, default=8, help="GPUs a host")
    parser.add_argument("--memory", type=float, default=139.0, help="GiB of a GPU")
    parser.add_argument("--drift", type=int, default=DRIFT, help="planes that a block reaches beyond its own, each side")
    parser.add_argument("--kernels", type=Path, default=measure.RESULTS / "gpu_iterations.json")
    parser.add_argument("--scaling", type=Path, default=measure.RESULTS / "scaling.json")
    parser.add_argument("--timeline", type=Path, default=measure.RESULTS / "timeline.json")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "scaling_model.json")
    args = parser.parse_args()
    cluster, measured = gpus(args), read(args.scaling)
    found = list(predictions(cluster, args.drift))
    rows = rows_of(found, cluster)
    print("\n".join(predicted_table(found, cluster)))
    machine = here(measured, read(args.timeline))
    if machine is None:
        print(f"{args.scaling} has no base, samplers and links; run scaling.py to have the model checked")
    else:
        checked = list(checks(machine, measured, args.drift))
        rows += checked
        print("\n".join(checked_table(checked, machine)))
    measure.save(rows, args.out)


if __name__ == "__main__":
    main()

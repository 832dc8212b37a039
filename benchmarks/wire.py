"""Bytes that a rank sends per iteration, by purpose, compared with the minimum and with the plan.

    python benchmarks/wire.py
    python benchmarks/wire.py --losses lncc --workers 3 --residencies ring

Measured: the difference of two runs with different numbers of iterations, divided by that difference, so that everything else
cancels. The ``window`` of the loop is separated from the window of the final metrics by the run with ``replicate``, whose
result is the same bit for bit and which has no other. Minimum: the planes of other ranks that each operation reads, exchanged
once (moved for the reach of the loss, g for its filter, one plane of u for the composition, u for its filter); of the moving
image the planes that the displacement of the block reaches, every iteration in the ring, the newly reached ones in a window,
none with replicate; of the sums two numbers or the joint histogram, and the longest step, each reduced once: 2 (n - 1) / n of
it. Figures are bytes of the rank that sends most (``most``) and of the mean rank (``mean``). ``plan`` is what the plan
states.
Writes ``benchmarks/results/wire.json``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import measure
import numpy as np
import scaling
from distributed import Client
from numpy.typing import NDArray

import daskreg
from daskreg.grid import Partition, Span
from daskreg.kernels.smoothing.cpu import gaussian_radius
from daskreg.planning import RESIDENCIES, Level

Field = NDArray[np.float32]
VALUE, VECTOR = 4, 12  # bytes of a float32 and of three


@dataclass(frozen=True)
class Bytes:
    """What a rank sends per iteration: planes around blocks, planes of the moving image, sums."""

    halo: float = 0.0
    moving: float = 0.0
    sums: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def as_dict(self) -> dict[str, int]:
        return {f.name: round(getattr(self, f.name)) for f in fields(self)} | {"total": round(self.total)}


# --- the least ----------------------------------------------------------------------------------------------------------


def least(level: Level, stage: Any, ends: tuple[Field, Field], iterations: int) -> list[Bytes]:
    """By rank; ends: the displacement (3, Z, Y, X), voxels, where the counted iterations begin and end."""
    n = len([s for s in level.partition.slabs if len(s)])
    similarity = stage.similarity
    around = [(similarity.reach, VALUE), (gaussian_radius(stage.smooth_gradient), VECTOR), (1, VECTOR)]
    around.append((gaussian_radius(stage.smooth_warp), VECTOR))
    sums = 2 * (n - 1) / n * (8 * (stage.similarity.bins**2 if stage.similarity.kind == "mi" else 2) + 8)
    plane = math.prod(level.fixed.shape[1:])
    moving = _moving(level, [reached(level.partition, u) for u in ends], iterations)
    return [
        Bytes(plane * sum(lent(level.partition, rank, reach) * size for reach, size in around), moving[rank], sums)
        for rank in range(len(level.partition.slabs))
    ]


def lent(partition: Partition, rank: int, reach: int) -> int:
    """Planes of a rank that the blocks of others read within ``reach`` around them."""
    others = [r for r in range(len(partition.slabs)) if r != rank and len(partition[r])]
    return sum(len(partition[rank] & partition.around(r, reach)) for r in others)


def reached(partition: Partition, u: Field) -> list[Span]:
    """Planes of the moving image between which p = x + u falls, a span a block; both images have one grid here."""
    found = []
    for slab in partition.slabs:
        p = u[0, slab.start : slab.stop] + np.arange(slab.start, slab.stop, dtype=np.float32)[:, None, None]
        found.append(Span(math.floor(p.min()), math.floor(p.max()) + 2) if p.size else Span(0, 0))
    return found


def _moving(level: Level, needs: list[list[Span]], iterations: int) -> list[float]:
    """Bytes by rank: planes of its shard that others reach, at the mean of both ends; in a window those reached since."""
    plane, ranks = VALUE * math.prod(level.moving.shape[1:]), range(len(level.shards.slabs))
    first, last = ([_foreign(level.shards, rank, need) for rank in ranks] for need in needs)
    match level.residency:
        case "ring":
            return [plane * (a + b) / 2 for a, b in zip(first, last)]
        case "window":
            return [plane * max(0, b - a) / iterations for a, b in zip(first, last)]
        case _:
            return [0.0 for _ in ranks]


def _foreign(shards: Partition, rank: int, needs: list[Span]) -> int:
    return sum(len(shards[rank] & need) for r, need in enumerate(needs) if r != rank)


# --- measured -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A run: what each rank has sent, by purpose, and the displacement, voxels."""

    traffic: list[dict[str, int]]
    u: Field


def run(client: Client, shape: scaling.Shape, loss: str, iterations: int, workers: int, residency: str, comm: str) -> Ended:
    """Only the bytes count here; they do not depend on the load of the machine."""
    use = {"workers": workers, "residency": residency, "comm": comm}
    result = scaling.register(client, scaling.pair(shape), loss, iterations, **use)
    assert result.displacement is not None
    return Ended([rank["traffic"] for rank in result.report["ranks"]], np.asarray(result.displacement, np.float32))


def sent(runs: tuple[Ended, Ended], still: tuple[Ended, Ended], iterations: int) -> list[Bytes]:
    """By rank, an iteration; still: the same runs where every rank holds all of the moving image."""

    def grown(pair: tuple[Ended, Ended], rank: int, purpose: str) -> int:
        return pair[1].traffic[rank].get(purpose, 0) - pair[0].traffic[rank].get(purpose, 0)

    found = []
    for rank in range(len(runs[0].traffic)):
        moving = grown(runs, rank, "ring") + grown(runs, rank, "window") - grown(still, rank, "window")
        each = (grown(runs, rank, "halo"), moving, grown(runs, rank, "sum"))
        found.append(Bytes(*(b / iterations for b in each)))
    return found


def rows_of(args: argparse.Namespace, client: Client) -> Iterator[dict[str, Any]]:
    """One row for each loss, number of workers and residency."""
    counted = args.iterations[1] - args.iterations[0]
    for loss, workers in itertools.product(args.losses, args.workers):

        def both(residency: str, loss: str = loss, workers: int = workers) -> tuple[Ended, Ended]:
            less, more = (run(client, args.shape, loss, n, workers, residency, args.comm) for n in args.iterations)
            return less, more

        still = both("replicate")
        for residency in args.residencies:
            runs = still if residency == "replicate" else both(residency)
            if not all(np.array_equal(a.u, b.u) for a, b in zip(runs, still)):
                raise RuntimeError(f"{residency} on {workers} workers gave another field than replicate; mend that first.")
            plan = daskreg.plan(*scaling.pair(args.shape), scaling.stages(loss, 1), workers=workers, residency=residency)
            level, stage = plan.levels[0][0], plan.config.stages[0]
            ideal = least(level, stage, (runs[0].u, runs[1].u), counted)
            yield {
                "case": f"{loss}, {workers} workers, {residency}", "program": "daskreg", "loss": loss, "workers": workers,
                "residency": residency, "shape": args.shape, "iterations": args.iterations, "comm": args.comm,
                **compared(sent(runs, still, counted), ideal, plan.traffic(0, level)), "versions": scaling.versions(),
            }  # fmt: skip


def compared(measured: list[Bytes], ideal: list[Bytes], planned: int) -> dict[str, Any]:
    """Measured and minimum of the rank that sends most and of the mean rank; ``of_plan`` above 1 is more than was planned."""
    busiest = max(range(len(measured)), key=lambda r: measured[r].total)
    found: dict[str, Any] = {}
    for name, of in (("measured", measured), ("least", ideal)):
        mean = Bytes(*(float(np.mean(column)) for column in zip(*map(astuple, of), strict=True)))
        found[name] = {"most": of[busiest].as_dict(), "mean": mean.as_dict()}
    most = measured[busiest].total
    found["of_least"] = round(most / ideal[busiest].total, 3) if ideal[busiest].total else None
    return {**found, "plan": planned, "of_plan": round(most / planned, 3) if planned else None}


def numbers_of(fewest: int) -> Callable[[str], list[int]]:
    """Comma-separated whole numbers."""

    def parse(text: str) -> list[int]:
        found = [int(n) for n in text.split(",")]
        if min(found) < fewest:
            raise argparse.ArgumentTypeError(f"{text!r}: each must be at least {fewest}")
        return found

    return parse


def main() -> None:
    """Run the selected cases on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=scaling.listed(list(scaling.LOSSES)), default=list(scaling.LOSSES))
    parser.add_argument("--workers", type=numbers_of(2), default=[2, 3, 4])
    parser.add_argument("--residencies", type=scaling.listed(RESIDENCIES), default=list(RESIDENCIES))
    parser.add_argument("--shape", type=scaling.shape_of, default=(96, 64, 64), help="ZxYxX")
    parser.add_argument("--iterations", type=numbers_of(1), default=[4, 12], help="of the shorter and of the longer run")
    parser.add_argument("--comm", choices=("auto", "tcp", "ucx"), default="auto")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "wire.json")
    args = parser.parse_args()
    if len(args.iterations) != 2 or args.iterations[0] >= args.iterations[1]:
        parser.error(f"--iterations {args.iterations}: two numbers, the larger one last")
    rows: list[dict[str, Any]] = []
    with scaling.cluster(max(args.workers)) as client:
        for row in rows_of(args, client):
            measure.emit(row, rows)
            measure.save(rows, args.out)


if __name__ == "__main__":
    main()

"""A timeline of the ranks of a ring: the fraction of transfers hidden behind sampling, over UCX and TCP.

    python benchmarks/timeline.py
    python benchmarks/timeline.py --turns 45 --workers 2 --comms ucx

Two pairs: one as stored, where a block reaches only the planes next to its own; and one with the moving grid rotated by 45
degrees in its header, where every block reaches most of every shard, which the ring has to send (``--turns``, degrees). For
each rank, in seconds per iteration: ``sample``; ``transfer``, from posting a message to its arrival; ``wait``, the part of
the transfer that nothing covered, of which ``late`` is the time until the last other rank began the iteration, which no link
can hide. ``hidden``: 1 - wait / transfer. The end of a transfer is only noticed when the sampling beside it ends, so it
appears long; ``hidden_of_bare`` therefore relates the wait without ``late`` to the time that the same bytes take between two
idle workers (``bare``), and is 0 where the wait is longer than that. All ranks use the clock of one machine. With more
workers than cores, a wait includes time slices of other processes. Writes ``benchmarks/results/timeline.json`` and
``timeline.png``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import measure
import numpy as np
import scaling
from distributed import Client

import daskreg
from daskreg.grid import Grid
from tests.phantoms import rotation

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Event = tuple[str, float, float]  # name, start, stop; seconds
Ranks = list[list["Iteration"]]  # iterations by rank
LANES = {"sample": ("C0", 0.0), "transfer": ("C1", 0.3), "wait": ("C3", 0.6)}  # colour, place below the rank's top
SHOWN = 4  # iterations in the picture
SKIPPED = 2  # iterations at the start: memory is mapped, links are made


@dataclass(frozen=True)
class Iteration:
    """Events of one rank between two beginnings of an iteration."""

    events: tuple[Event, ...]

    @property
    def start(self) -> float:
        return self.events[0][1]

    def total(self, name: str) -> float:
        """Seconds."""
        return sum(b - a for what, a, b in self.events if what == name)

    def count(self, name: str) -> int:
        return sum(what == name for what, _, _ in self.events)


def iterations(timeline: Sequence[Event]) -> list[Iteration]:
    """An iteration begins with the own shard, the only one that is sampled without a message just before."""
    begins = [k for k, event in enumerate(timeline) if event[0] == "sample" and (k == 0 or timeline[k - 1][0] == "sample")]
    return [Iteration(tuple(timeline[a:b])) for a, b in itertools.pairwise([*begins, len(timeline)])]


def summary(ranks: Sequence[Sequence[Iteration]]) -> list[dict[str, float]]:
    """Of each rank the mean seconds of an iteration, by name, without the first ones."""
    found = []
    for mine in ranks:
        others = [other for other in ranks if other is not mine]
        late = [min(it.total("wait"), _late(it, [o[k] for o in others])) for k, it in enumerate(mine)]
        each = {name: float(np.mean([it.total(name) for it in mine[SKIPPED:]])) for name in LANES}
        found.append({**each, "late": float(np.mean(late[SKIPPED:])), "messages": _messages(mine)})
    return found


def _late(mine: Iteration, others: Sequence[Iteration]) -> float:
    """Seconds until the last of the others began."""
    return max(0.0, max(it.start for it in others) - mine.start)


def _messages(mine: Sequence[Iteration]) -> float:
    return float(np.mean([it.count("transfer") for it in mine[SKIPPED:]]))


# --- runs ---------------------------------------------------------------------------------------------------------------


def images(shape: scaling.Shape, degrees: float) -> tuple[Any, Any]:
    """Fixed and moving; the moving grid is rotated about its centre and the x axis, its voxel values are unchanged."""
    fixed, moving = scaling.pair(shape)
    turn, middle = rotation((0.0, 0.0, degrees)), (np.asarray(shape) - 1) / 2
    origin = middle - turn @ middle
    direction: Any = tuple(map(tuple, turn.tolist()))
    grid = Grid(shape, direction=direction, origin=tuple(origin.tolist()))
    return fixed, moving if degrees == 0 else daskreg.open_volume(moving, grid=grid)


def traced(client: Client, args: argparse.Namespace, workers: int, degrees: float, comm: str) -> tuple[Ranks, int]:
    """Iterations by rank, and the bytes that the busiest rank sent round the ring in one."""
    use: dict[str, Any] = {"workers": workers, "residency": "ring", "comm": comm}
    pair = images(args.shape, degrees)
    scaling.register(client, pair, args.loss, 2, **use)  # compiles
    report = scaling.register(client, pair, args.loss, args.iterations, trace=True, **use).report
    ranks = [iterations([(str(n), float(a), float(b)) for n, a, b in rank["timeline"]]) for rank in report["ranks"]]
    if any(len(r) != args.iterations for r in ranks):
        raise RuntimeError(f"{[len(r) for r in ranks]} iterations were traced, {args.iterations} were made; give larger blocks.")
    return ranks, max(rank["traffic"].get("ring", 0) for rank in report["ranks"]) // args.iterations


def row_of(args: argparse.Namespace, client: Client, ranks: Ranks, size: int, comm: str) -> dict[str, Any]:
    """Figures of all ranks, and of the mean rank, to which the hidden fractions refer."""
    each = summary(ranks)
    mean = {name: float(np.mean([r[name] for r in each])) for name in each[0]}
    each_message = max(1, int(size / max(1.0, *(r["messages"] for r in each))))
    bare = mean["messages"] * scaling.link(client, comm, [each_message])[each_message]
    wait, late, transfer = mean["wait"], mean["late"], mean["transfer"]
    spans = [b.start - a.start for r in ranks for a, b in itertools.pairwise(r[SKIPPED:])]
    return {
        "seconds": round(median(spans), 5), "ring_bytes": size, "bare": round(bare, 5),
        "hidden": round(1 - wait / transfer, 3) if transfer else None,
        "hidden_of_bare": round(1 - min(1.0, max(0.0, wait - late) / bare), 3) if transfer else None,
        "mean": {k: round(v, 5) for k, v in mean.items()},
        "ranks": [{k: round(v, 5) for k, v in r.items()} for r in each],
    }  # fmt: skip


# --- picture ------------------------------------------------------------------------------------------------------------


def draw(axes: Axes, ranks: Ranks, title: str) -> None:
    """A few iterations from the middle; three lanes a rank."""
    middle = max(0, len(ranks[0]) // 2 - SHOWN // 2)
    shown = [r[middle : middle + SHOWN] for r in ranks]
    zero = min(r[0].start for r in shown)
    for rank, found in enumerate(shown):
        for name, (colour, lane) in LANES.items():
            bars = [((a - zero) * 1e3, (b - a) * 1e3) for it in found for what, a, b in it.events if what == name]
            axes.broken_barh(bars, (rank + lane, 0.28), color=colour, label=name if rank == 0 else None)
    axes.set(title=title, yticks=[r + 0.44 for r in range(len(ranks))], yticklabels=[f"rank {r}" for r in range(len(ranks))])
    axes.set(xlabel="milliseconds", ylim=(len(ranks), -0.1))


def picture(drawn: list[tuple[Ranks, str]], path: Path) -> None:
    """All runs below one another, each in its own time."""
    heights = [1 + 0.6 * len(ranks) for ranks, _ in drawn]
    size = (11, sum(heights) + 0.6)
    figure, axes = plt.subplots(len(drawn), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    for axis, (ranks, title) in zip(axes[:, 0], drawn, strict=True):
        draw(axis, ranks, title)
    axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1.2), ncols=len(LANES), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def rows_of(args: argparse.Namespace, client: Client, drawn: list[tuple[Ranks, str]]) -> Iterator[dict[str, Any]]:
    """One for each pair, number of workers and link; what was seen goes into ``drawn``."""
    for degrees, workers, comm in itertools.product(args.turns, args.workers, args.comms):
        ranks, size = traced(client, args, workers, degrees, comm)
        row = row_of(args, client, ranks, size, comm)
        case = f"{workers} workers, {comm}, turned {degrees:g} degrees"
        covered = "nothing crosses" if row["hidden"] is None else f"{100 * row['hidden']:.0f} % of transfers hidden"
        drawn.append((ranks, f"{case}: {size / 1e6:.2f} MB a rank and iteration, {covered}"))
        yield {
            "case": case, "program": "daskreg", "loss": args.loss, "shape": args.shape, "workers": workers, "comm": comm,
            "turned_degrees": degrees, "iterations": args.iterations, "cores": scaling.CORES, **row,
            "versions": scaling.versions(),
        }  # fmt: skip


def main() -> None:
    """Run the selected cases on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comms", type=scaling.listed(("ucx", "tcp")), default=["ucx", "tcp"])
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[2, 3])
    parser.add_argument("--turns", type=lambda text: [float(n) for n in text.split(",")], default=[0.0, 45.0], help="degrees")
    parser.add_argument("--loss", choices=list(scaling.LOSSES), default="mse")
    parser.add_argument("--shape", type=scaling.shape_of, default=(96, 128, 128), help="ZxYxX")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "timeline.json")
    args = parser.parse_args()
    if min(args.workers) < 2:
        parser.error(f"--workers {args.workers}: a ring has at least 2")
    if args.iterations <= SKIPPED + 1:
        parser.error(f"--iterations {args.iterations}: more than {SKIPPED + 1} are needed, the first {SKIPPED} do not count")
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[Ranks, str]] = []
    with scaling.cluster(max(args.workers)) as client:
        for row in rows_of(args, client, drawn):
            measure.emit(row, rows)
    measure.save(rows, args.out)
    picture(drawn, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

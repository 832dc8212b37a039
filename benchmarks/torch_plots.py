"""Draw ``torch_losses.json``: milliseconds and memory over the edge of the volume, a panel a case, a line a program.

    python benchmarks/torch_plots.py [FILE] [-o torch_losses.png]

Needs matplotlib. Rows that have an error are left out and counted in the title: out of memory is a result too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")
RESULTS = Path(__file__).parent / "results"
MEASURES = (("ms", "ms, forward + backward"), ("extra_bytes_per_voxel", "bytes a voxel beyond the inputs"))
Row = dict[str, Any]


def voxels(row: Row) -> int:
    """Of one case; 0 where a row has no size."""
    return math.prod(row["shape"]) if "shape" in row else int(row.get("edge", 0)) ** 3


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Cases of single volumes that two programs or more were measured with, at two sizes or more."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if voxels(row) and row.get("shape", [1])[0] == 1:
            found[row["case"]].append(row)
    return {
        case: own for case, own in found.items() if all(len({key(r) for r in own}) > 1 for key in (voxels, itemgetter("who")))
    }


def draw(axes: Axes, rows: list[Row], measure: str) -> None:
    """A line a program."""
    programs = dict.fromkeys(row["who"] for row in rows)
    for who in programs:
        points = sorted((voxels(r) ** (1 / 3), r[measure]) for r in rows if r["who"] == who and measure in r)
        if points:
            edges, values = zip(*points, strict=True)
            bold = {"linewidth": 2.5, "zorder": 3} if who == "daskreg" else {"linewidth": 1.2}
            axes.plot(edges, [max(v, 1e-3) for v in values], marker="o", markersize=4, label=who, **bold)
    axes.set_xscale("log", base=2)
    values = [row[measure] for row in rows if measure in row]
    if max(values) > 4 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.1 * max(values))
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("cube root of the number of voxels")


def figure(rows: list[Row]) -> Figure:
    """A row of panels a case: time and memory."""
    cases = by_case(rows)
    drawn = Figure(figsize=(11, 3.2 * max(1, len(cases))), layout="constrained")
    panels = drawn.subplots(max(1, len(cases)), len(MEASURES), squeeze=False)
    for line, (case, own) in zip(panels, cases.items(), strict=False):
        failed = sum("error" in row for row in own)
        for axes, (measure, label) in zip(line, MEASURES, strict=True):
            draw(axes, own, measure)
            axes.set_ylabel(label)
        line[0].set_title(case + (f" ({failed} failed)" if failed else ""), loc="left", fontsize=10)
        line[-1].legend(fontsize=7)
    machine = next((row for row in rows if row["case"] == "machine"), {})
    drawn.suptitle(f"{machine.get('card', '')}, PyTorch {machine.get('torch', '')}, {machine.get('commit', '')}", fontsize=10)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS / "torch_losses.json")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "torch_losses.png")
    given = parser.parse_args()
    figure(json.loads(given.file.read_text())).savefig(given.output, dpi=72)
    print(given.output)


if __name__ == "__main__":
    main()

"""A timeline of two iterations of one rank among several: kernels, transfers and gaps.

    python benchmarks/gpu_timeline.py 512 --losses "lncc center"    # records; needs a GPU and PyTorch
    python benchmarks/gpu_timeline.py 512 --ranks 4 --comm nccl        # of real ranks, through dask-cuda: a table of each rank
    python benchmarks/gpu_timeline.py --draw                           # draws the records; needs matplotlib

The rank, its neighbours and their link are those of gpu_rank.py. ``idle``: ms per iteration without a kernel;  ``moving``: ms
with a transfer;  ``hidden``: fraction of that time beside a kernel. The profiler slows the host, so gaps are longer than in
gpu_rank.py. Of real ranks: milliseconds of each launch and message of an iteration, and when it begins after the iteration did,
means over the last iterations; ``idle``: ms an iteration between launches; host: what it waits for. Writes
``gpu_timeline.json``, and from it ``gpu_timeline.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import gpu_rank

import daskreg
from daskreg.config import Config, Deformable

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_timeline.json"
SHOWN = 2  # iterations
MEANT = 8  # of real ranks
PASSES = {  # of a kernel's name, as it is mangled
    "smooth_adam": "smooth, Adam", "compose_smooth": "compose, smooth", "finish_iteration": "finish iteration",
    "histogram": "histogram", "information": "histogram",
    "column_body": "sample, windows, pull back", "window_body": "sample, windows, pull back",
    "lncc": "sample, windows, pull back", "sample": "sample",
}  # fmt: skip
Event = dict[str, Any]


def recorded(shape: tuple[int, ...], name: str, residency: str, given: argparse.Namespace) -> list[Event]:
    """Kernels and copies of two iterations in the middle of a level: lane, name, start and length in ms."""
    from torch.profiler import ProfilerActivity, profile

    def level(iterations: int) -> Deformable:
        return Deformable(similarity=gpu_rank.LOSSES[name], scales=(1,), iterations=(iterations,), tolerance=0)

    gpu_rank.run(shape, level(6), given, gpu_rank.RANKS, residency)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        gpu_rank.run(shape, level(40), given, gpu_rank.RANKS, residency)
    with tempfile.TemporaryDirectory() as folder:
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    return _cut([e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")])


def _cut(events: list[Event]) -> list[Event]:
    """From one ``finish_iteration``, which ends an iteration, to the one two iterations later."""
    events.sort(key=lambda e: e["ts"])
    ends = [e for e in events if "finish_iteration" in e["name"]]
    first, last = ends[len(ends) // 2], ends[len(ends) // 2 + SHOWN]
    begin, end, stream = first["ts"] + first["dur"], last["ts"] + last["dur"], first["args"]["stream"]
    return [
        {"lane": "kernels" if e["args"]["stream"] == stream else "planes", "name": _pass(e),
         "start": round((e["ts"] - begin) / 1e3, 4), "ms": round(e["dur"] / 1e3, 4)}
        for e in events if begin <= e["ts"] < end
    ]  # fmt: skip


def _pass(event: Event) -> str:
    if event["cat"] != "kernel":
        return "copy"
    return next((name for part, name in PASSES.items() if part in event["name"]), "other")


def real_ranks(edge: int, name: str, residency: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each rank, what an iteration is made of: the volume of gpu_scaling.py, one cube a GPU."""
    import gpu_scaling

    stage = Deformable(similarity=gpu_rank.LOSSES[name], scales=(1,), iterations=(24,), tolerance=0)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder, gpu_scaling.cluster(asked.ranks, "cuda") as client:
        images = gpu_scaling.written(folder, (asked.ranks * edge, edge, edge), True)
        found = daskreg.register(*images, Config(stages=(stage, stage)), client=client, device="cuda", residency=residency,
                                 comm=asked.comm, checkpoint=None, trace=True)  # fmt: skip
    return [anatomy(rank["timeline"]) for rank in found.report["ranks"]]


def anatomy(timeline: list[Any]) -> dict[str, Any]:
    """Means over whole iterations, which ``gpu settle`` ends, of the last level; ms."""
    events = sorted(((str(n), 1e3 * float(a), 1e3 * float(b)) for n, a, b in timeline), key=lambda e: e[1])
    ends = [b for n, _, b in events if n == "gpu settle"]
    cut = list(pairwise(ends[-MEANT:]))
    parts: dict[str, list[tuple[float, float]]] = {}
    idle = []
    for begin, end in cut:
        inside = [e for e in events if begin <= e[1] < end]
        for n, a, b in inside:
            parts.setdefault(n, []).append((a - begin, b - a))
        busy = _union([{"start": a, "ms": b - a} for n, a, b in inside if n.startswith("gpu ") and "exchange" not in n])
        idle.append(end - begin - sum(b - a for a, b in busy))
    each = {n: {"begins": round(sum(a for a, _ in v) / len(v), 3), "ms": round(sum(b for _, b in v) / len(cut), 3)}
            for n, v in sorted(parts.items(), key=lambda p: p[1][0])}  # fmt: skip
    whole = (cut[-1][1] - cut[0][0]) / len(cut)
    return {"iteration": round(whole, 3), "idle": round(sum(idle) / len(idle), 3), "parts": each}


def summary(events: list[Event]) -> dict[str, float]:
    """Milliseconds an iteration, and parts."""
    kernels = _union([e for e in events if e["lane"] == "kernels"])
    moving = _union([e for e in events if e["lane"] == "planes"])
    end = max(b for _, b in kernels)
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in moving for c, d in kernels)
    whole = sum(b - a for a, b in moving)
    idle = end - sum(b - a for a, b in kernels)
    found = {"iteration": end / SHOWN, "idle": idle / SHOWN, "moving": whole / SHOWN, "hidden": both / whole}
    return {name: round(value, 3) for name, value in found.items()}


def _union(events: list[Event]) -> list[tuple[float, float]]:
    """Intervals that do not overlap."""
    found: list[tuple[float, float]] = []
    for a, b in sorted((e["start"], e["start"] + e["ms"]) for e in events):
        if found and a <= found[-1][1]:
            found[-1] = found[-1][0], max(b, found[-1][1])
        else:
            found.append((a, b))
    return found


def draw(rows: list[Event]) -> None:
    """A bar of kernels and one of planes for each row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(len(rows), 1, figsize=(12, 1.7 * len(rows)), squeeze=False, layout="constrained")
    names = sorted({e["name"] for row in rows for e in row["events"]})
    colours = {name: f"C{k % 10}" for k, name in enumerate(names)}
    for axes, row in zip(all_axes[:, 0], rows, strict=True):
        for e in row["events"]:
            axes.barh(e["lane"], e["ms"], left=e["start"], color=colours[e["name"]], height=0.8)
        axes.set_title(
            f"{row['case']}, {row['residency']}, {row['block']}: hidden {row['hidden']:.0%}, idle {row['idle']:.2f} ms",
            fontsize=9,
        )
        axes.set_xlabel("ms", fontsize=8)
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=colours[n]) for n in names], names, loc="outside lower center", ncols=5, fontsize=8
    )
    figure.savefig(OUT.with_suffix(".png"), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("block", nargs="?", default="512")
    parser.add_argument("--losses", default="mse,lncc center,mi")
    parser.add_argument("--residencies", default="window,ring")
    parser.add_argument("--ranks", type=int, help="real ones, a GPU each, with a table of each")
    parser.add_argument("--comm", default="auto")
    parser.add_argument("--folder", help="where the volumes of real ranks go")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    if asked.draw:
        draw(json.loads(OUT.read_text()))
        return
    if asked.ranks:
        for name, residency in product(asked.losses.split(","), asked.residencies.split(",")):
            for rank, found in enumerate(real_ranks(int(asked.block), name, residency, asked)):
                print(json.dumps({"rank": rank, "case": name, "residency": residency, "comm": asked.comm, **found}), flush=True)
        return
    given = gpu_rank.arguments([])
    rows = []
    for name, residency in product(asked.losses.split(","), asked.residencies.split(",")):
        events = recorded(gpu_rank.block_of(asked.block), name, residency, given)
        rows.append({"block": asked.block, "case": name, "residency": residency, **summary(events), "events": events})
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "events"}), flush=True)
    OUT.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()

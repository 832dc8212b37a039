"""Labelled heads, known warps and test-retest, in two sets: some to choose presets on, others that only report.

    python benchmarks/brains.py --data DIR --cases report --mm 2 --opponents greedy,greedy_tuned,ants_cc --threads 2

``DIR`` has the images of ``brain_heads.HEADS``. Prints one JSON line per case and program, then a table: mean and standard
deviation over cases. Writes ``benchmarks/results/brains_MM.json``. For each kind of case:

- pair: Dice by structure (nearest neighbour), both directions of every two heads whose labels share structures;
- warp: a head under a known smooth warp, in another contrast, with 3 % noise and a 20 % bias field: Dice, and the distance from
  the true map in mm;
- retest: a head scanned twice, with a known rigid motion, noise and a bias field: distance from the true map, and from the
  nearest rigid map (``beyond_rigid``; what is not noise in it is 0), in mm.

For all: folds and the share of head voxels whose Jacobian is from 0.1 to 10, in percent. Each program's map is read from the
field that it exports, and measured by one function. ``seconds``: registration alone, process start included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import brain_heads
import measure
import opponents
from brain_heads import Case
from brain_measures import measured, read_field
from labelled import options

Row = dict[str, Any]
COLUMNS = ("dice", "error", "beyond_rigid", "folded_percent", "plain_percent", "seconds")


def main() -> None:
    """Measure the cases selected by ``--cases``, with every selected program."""
    args = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        for case in _chosen(args.cases, args.only):
            place = brain_heads.make(case, args.data, args.mm, work / "cases")
            for program, run in _programs(args).items():
                measure.emit(_row(case, program, run, place, args.mm), rows)
                measure.save(rows, args.out or measure.RESULTS / f"brains_{args.mm:g}mm.json")
    print(table(rows))


def _arguments() -> argparse.Namespace:
    parser = options(__doc__, "", "greedy,greedy_tuned,ants_cc,fireants")
    parser.set_defaults(out=None)
    parser.add_argument("--cases", default="report", help="tune, report or all, of one kind as in report/pair")
    parser.add_argument("--only", default="", help="comma-separated names of cases instead")
    parser.add_argument("--mm", type=float, default=1.0, help="voxel size that all images are brought to")
    parser.add_argument("--preset", default="brain", help="or a configuration, a file .yaml")
    return parser.parse_args()


def _chosen(which: str, only: str) -> list[Case]:
    names = [n for n in only.split(",") if n]
    unknown = [n for n in names if n not in brain_heads.CASES]
    if unknown:
        raise SystemExit(f"--only: {', '.join(unknown)} not known; use {', '.join(brain_heads.CASES)}")
    if names:
        return [brain_heads.CASES[n] for n in names]
    part, _, kind = which.partition("/")
    sets = {"tune": (True,), "report": (False,), "all": (True, False)}
    if part not in sets or kind not in ("", "pair", "warp", "retest"):
        raise SystemExit(f"--cases {which}: use tune, report or all, alone or with /pair, /warp or /retest")
    return [c for c in brain_heads.CASES.values() if c.tune in sets[part] and kind in ("", c.kind)]


Program = Callable[[Path, Path], Row]  # (case folder, work folder) -> seconds, warp, labels


def _programs(args: argparse.Namespace) -> dict[str, Program]:
    names = [n for n in args.opponents.split(",") if n]
    unknown = sorted(set(names) - set(opponents.RUNNERS))
    if unknown:
        raise SystemExit(f"--opponents: {', '.join(unknown)} not known; use {', '.join(opponents.RUNNERS)}")
    ours: dict[str, Program] = {} if args.no_daskreg else {"daskreg": lambda place, work: _daskreg(place, work, args)}
    return {**ours, **{n: _opponent(n, args) for n in names}}


def _row(case: Case, program: str, run: Program, place: Path, mm: float) -> Row:
    row: Row = {"case": case.name, "kind": case.kind, "set": "tune" if case.tune else "report", "mm": mm, "program": program}
    work = place / program
    work.mkdir(exist_ok=True)
    try:
        found = run(place, work)
    except (RuntimeError, FileNotFoundError) as error:
        return {**row, "error_text": str(error)[-1500:]}
    row.update({k: found[k] for k in ("seconds", "version", "settings") if k in found})
    row.update(measured(case.kind, place, *read_field(found["warp"])))
    if case.kind != "retest":
        overlaps = measure.group_dice(place / "fixed_labels.nii.gz", found["labels"], case.structures)
        row.update(dice=round(statistics.mean(overlaps.values()), 4), dice_by_structure=overlaps)
    return row


def _labels(place: Path) -> Path | None:
    path = place / "moving_labels.nii.gz"
    return path if path.exists() else None


def _daskreg(place: Path, work: Path, args: argparse.Namespace) -> Row:
    store, log, warp, warped = work / "run.zarr", work / "log.txt", work / "warp.nii.gz", work / "labels.nii.gz"
    recipe = "--config" if args.preset.endswith(".yaml") else "--preset"
    more = [recipe, args.preset, "--overwrite", *args.daskreg_args.split()]
    run = [place / "fixed.nii.gz", place / "moving.nii.gz", "-o", store, *more]
    found = measure.daskreg("register", *run, log=log, threads=args.threads)
    measure.daskreg("export", store, "-o", warp, "--overwrite", log=log, threads=args.threads)
    labels = _labels(place)
    if labels:
        to = ["-o", warped, "--interpolation", "nearest", "--overwrite"]
        measure.daskreg("apply", store, labels, *to, log=log, threads=args.threads)
    return {"seconds": found.seconds, "warp": warp, "labels": warped, "settings": " ".join(more)}


def _opponent(name: str, args: argparse.Namespace) -> Program:
    def run(place: Path, work: Path) -> Row:
        labels = _labels(place)
        images = str(place / "fixed.nii.gz"), str(place / "moving.nii.gz")
        job = opponents.Job(*images, str(work), labels and str(labels), args.threads)
        found = opponents.RUNNERS[name](job, args.opponents_home)
        seconds = round(sum(v for k, v in found["seconds"].items() if k != "apply"), 2)
        return {
            "seconds": seconds,
            "version": found["version"],
            "warp": found["warp"],
            "labels": found["labels"].get("deformable"),
        }

    return run


def table(rows: Iterable[Row]) -> str:
    """Markdown: a line per set, kind and program, mean +- standard deviation over cases."""
    rows = [r for r in rows if "error_text" not in r]
    lines = [f"| set | kind | cases | program | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 4)]
    for key in dict.fromkeys((r["set"], r["kind"], r["program"]) for r in rows):
        group = [r for r in rows if (r["set"], r["kind"], r["program"]) == key]
        cells = [_cell([r[c] for r in group if c in r]) for c in COLUMNS]
        lines.append(f"| {key[0]} | {key[1]} | {len(group)} | {key[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()

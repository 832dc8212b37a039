"""One labelled pair and every program: the same Dice on the fixed grid, the same count of folds, wall time with process start.

``dice`` is of labels resampled by nearest neighbour, for all programs; ``dice_label`` is of daskreg's label interpolation.

The loop over programs is shared by all benchmarks of real pairs. This is not a benchmark by itself.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import opponents

Step = Callable[["Pair", Path], dict[str, Any]]  # (pair, work folder) -> row
Own = Callable[..., dict[str, Any]]  # (pair, work folder, args=)
Theirs = Callable[..., dict[str, Any]]  # (opponent's name, pair, work folder, args=)


@dataclass(frozen=True)
class Pair:
    """fixed, moving: image file names;  groups: structure name -> (ids in the fixed labels, ids in the moving labels).

    Without labels (None) only times and folds are measured.
    """

    case: str
    fixed: str
    moving: str
    fixed_labels: str | None = None
    moving_labels: str | None = None
    groups: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None

    def overlaps(self, data: Path, warped: Path | str) -> dict[str, float]:
        """Dice by structure between the fixed labels and the warped moving labels; several ids are one structure."""
        groups, fixed = self.groups or {}, data / str(self.fixed_labels)
        return measure.group_dice(fixed, warped, groups)


def same_ids(ids: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Structures that have the same number in both label images."""
    return {str(i): ((i,), (i,)) for i in ids}


def options(doc: str | None, out: str, known: str = "greedy,ants,fireants") -> argparse.ArgumentParser:
    """Options of every benchmark of real pairs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the volumes")
    parser.add_argument("--opponents", default="", help=f"comma-separated, of {known}; none by default")
    parser.add_argument("--opponents-home", type=Path, default=opponents.DEFAULT_HOME, help="their environment")
    parser.add_argument("--no-daskreg", action="store_true", help="measure the opponents only")
    parser.add_argument("--daskreg-args", default="", help="more arguments for 'daskreg register', in one string")
    parser.add_argument("--device", default="cpu", help="written into the result; choose daskreg's own with --daskreg-args")
    parser.add_argument("--work", type=Path, default=None, help="folder for what the programs write (a temporary one)")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / out)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def run(pairs: list[Pair], args: argparse.Namespace, preset: str = "brain") -> list[dict[str, Any]]:
    """Measure every labelled pair with every selected program."""
    own: Own = functools.partial(_daskreg, preset=preset)
    return run_programs(pairs, args, lambda p, w: _before(p, w, args), own, _opponent)


def run_programs(pairs: list[Pair], args: argparse.Namespace, before: Step, own: Own, theirs: Theirs) -> list[dict[str, Any]]:
    """One row per pair and program: 'before', daskreg, the selected opponents. A failed program gives a row with its error."""
    rows: list[dict[str, Any]] = []
    steps = _steps(args, before, own, theirs)
    with tempfile.TemporaryDirectory() as scratch:
        for pair, (name, step) in itertools.product(pairs, steps.items()):
            # greedy reads its command line as words and '-' as options: plain names only
            work = ((args.work or Path(scratch)) / pair.case.replace("->", "_to_") / name).resolve()
            work.mkdir(parents=True, exist_ok=True)
            measure.emit({"case": pair.case, "program": name, **_guarded(step, pair, work)}, rows)
            measure.save(rows, args.out)
    return rows


def _steps(args: argparse.Namespace, before: Step, own: Own, theirs: Theirs) -> dict[str, Step]:
    names = [n for n in args.opponents.split(",") if n]
    unknown = sorted(set(names) - set(opponents.RUNNERS))
    if unknown:
        raise SystemExit(f"--opponents {args.opponents}: {', '.join(unknown)} not known; use {', '.join(opponents.RUNNERS)}")
    ours = {} if args.no_daskreg else {"daskreg": functools.partial(own, args=args)}
    return {"before": before, **ours, **{n: functools.partial(theirs, n, args=args) for n in names}}


def _guarded(step: Step, pair: Pair, work: Path) -> dict[str, Any]:
    try:
        return step(pair, work)
    except (RuntimeError, FileNotFoundError) as error:
        return {"error": str(error)[-1500:]}


def _before(pair: Pair, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    if not pair.groups:
        return {}
    path = measure.resampled_by_header(args.data / str(pair.moving_labels), args.data / pair.fixed, work / "before.nii.gz")
    return _scores("dice", pair.overlaps(args.data, path))


def _daskreg(pair: Pair, work: Path, args: argparse.Namespace, preset: str) -> dict[str, Any]:
    store, log, fixed, moving = work / "run.zarr", work / "log.txt", args.data / pair.fixed, args.data / pair.moving
    more = ["--preset", preset, "--overwrite", *args.daskreg_args.split()]
    found = measure.daskreg("register", fixed, moving, "-o", store, *more, log=log, threads=args.threads)
    row: dict[str, Any] = {"device": args.device, "settings": " ".join(more), "seconds": {"register": found.seconds}}
    row.update(wall=found.seconds, peak_rss=found.peak_rss)
    if not pair.groups:
        return row
    applied = {}
    for name, interpolation in (("dice", "nearest"), ("dice_label", "label")):
        warped, source = work / f"labels_{interpolation}.nii.gz", args.data / str(pair.moving_labels)
        to = ["-o", warped, "--interpolation", interpolation, "--overwrite"]
        applied[name] = measure.daskreg("apply", store, source, *to, log=log, threads=args.threads).seconds
        row.update(_scores(name, pair.overlaps(args.data, warped)))
    row["seconds"]["apply"] = applied["dice"]
    row["wall"] = round(row["wall"] + applied["dice"], 2)
    warp = work / "warp.nii.gz"
    measure.daskreg("export", store, "-o", warp, "--overwrite", log=log, threads=args.threads)
    return {**row, "folded_percent": measure.folded_percent(warp)}


def _opponent(name: str, pair: Pair, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    source = str(args.data / pair.moving_labels) if pair.moving_labels and pair.groups else None
    job = opponents.Job(str(args.data / pair.fixed), str(args.data / pair.moving), str(work), source, args.threads)
    found = opponents.RUNNERS[name](job, args.opponents_home)
    row = {
        "device": found.get("device", "cpu"),
        "version": found["version"],
        **{k: found[k] for k in ("seconds", "wall", "peak_rss")},
    }
    if "warp" in found:
        row["folded_percent"] = measure.folded_percent(found["warp"])
    for phase, path in found["labels"].items():
        row.update(_scores("dice" if phase == "deformable" else "dice_affine", pair.overlaps(args.data, path)))
    return row


def _scores(name: str, overlaps: dict[str, float]) -> dict[str, Any]:
    return {name: round(sum(overlaps.values()) / len(overlaps), 4), f"{name}_by_label": overlaps}

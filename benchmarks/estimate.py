"""The time that ``daskreg plan`` estimates for the levels of a run, and the time that they take.

    python benchmarks/estimate.py --data DIR    # also on DIR's brain pair

``estimated``: seconds of all levels;  ``measured``: of a run whose levels do not stop on a plateau, which is what the
estimate is for;  ``usual``: of the run with the preset unchanged;  ``error``: estimated / measured - 1;  ``levels``: stage,
scale, iterations, estimated and measured seconds, the least of three runs, since other work on the machine only adds to it.
One worker with all cores.
Writes ``benchmarks/results/estimate.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

sys.path.insert(0, str(measure.ROOT))

import scaling

import daskreg
from daskreg.config import Config, Optimised
from daskreg.planning.table import seconds
from daskreg.workflows.presets import preset

Pair = tuple[Path, Path]
REPEATS = 3  # the first may compile


def endless(config: Config) -> Config:
    """The same stages, none of which stops on a plateau."""
    stages = [s.model_copy(update={"tolerance": 0.0}) if isinstance(s, Optimised) else s for s in config.stages]
    return config.model_copy(update={"stages": tuple(stages)})


def took(pair: Pair, config: Config, output: Path) -> list[dict[str, Any]]:
    """Seconds that runs report for their levels, without the initial stages: the least of each level."""
    use: dict[str, Any] = {"output": output, "overwrite": True, "checkpoint": None, "threads": scaling.CORES}
    runs = [daskreg.register(*pair, config, **use).report["levels"] for _ in range(REPEATS)]
    found = [min(same, key=lambda level: float(level["seconds"])) for same in zip(*runs, strict=True)]
    return [level for level in found if level["stage"] not in ("moments", "search")]


def row_of(name: str, pair: Pair, config: Config, output: Path) -> dict[str, Any]:
    """A row from both kinds of runs."""
    found, usual = took(pair, endless(config), output), took(pair, config, output)
    plan = daskreg.plan(*pair, config)
    told = [seconds(plan, k, level, scaling.CORES) for k, levels in enumerate(plan.levels) for level in levels]
    estimated, measured = sum(told), sum(level["seconds"] for level in found)
    levels = [
        [level["stage"], level["scale"], len(level["losses"]), round(t, 3), round(level["seconds"], 3)]
        for t, level in zip(told, found, strict=True)
    ]
    return {
        "case": f"estimate, {name}", "program": "daskreg", "estimated": round(estimated, 2), "measured": round(measured, 2),
        "usual": round(sum(level["seconds"] for level in usual), 2), "error": round(estimated / measured - 1, 3),
        "levels": levels, "cores": scaling.CORES, "versions": scaling.versions(),
    }  # fmt: skip


def main() -> None:
    """Measure the bundled pair, and the brain pair where it is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder of the brain pair")
    parser.add_argument("--preset", default="brain")
    parser.add_argument("--out", type=Path, default=measure.RESULTS / "estimate.json")
    args = parser.parse_args()
    fixed, moving = (measure.ROOT / "daskreg" / "data" / name for name in scaling.BUNDLED)
    pairs: dict[str, Pair] = {"bundled 2 mm": (fixed, moving)}
    if args.data:
        pairs["oasis->mni 1 mm"] = (args.data / scaling.BRAIN[0], args.data / scaling.BRAIN[1])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, pair in pairs.items():
            measure.emit(row_of(name, pair, preset(args.preset), Path(scratch) / "run.zarr"), rows)
    measure.save(rows, args.out)


if __name__ == "__main__":
    main()

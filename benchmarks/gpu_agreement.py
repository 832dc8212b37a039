"""Whole runs on a CPU and on a GPU: Dice and loss agree, and two runs on the GPU give the same bits.

    python benchmarks/gpu_agreement.py --data DIR                     # labelled brains, 1 mm; needs a GPU

The OASIS atlas onto the MNI152 brain as in ``brain.py``: mean Dice of twelve structures, the last loss of every level, and
the distance of the two displacements (mm). ``cuda_mixed`` is with mixed storage. Sums are rounded differently on the two
devices, and a level may stop an iteration earlier on one of them, so displacements differ where the images do not determine
them; the Dice must not. Prints one JSON line per run and writes ``gpu_agreement.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
import yaml
from brain import OASIS_TO_MNI as PAIR

sys.path.insert(0, str(Path(__file__).parents[1]))

from daskreg.storage import RunStore
from daskreg.workflows.presets import preset

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "gpu_agreement.json"


def register(device: str, work: Path, data: Path, more: list[str]) -> tuple[dict[str, Any], RunStore]:
    """Register once: cost and accuracy."""
    store, log, labels = work / f"{device}.zarr", work / "log.txt", work / f"{device}.nii.gz"
    threads = os.cpu_count() or 1
    images = data / PAIR.fixed, data / PAIR.moving
    took = measure.daskreg(
        "register", *images, "-o", store, "--device", device.partition("_")[0], *more, log=log, threads=threads
    )
    to = ["-o", labels, "--interpolation", "nearest"]
    measure.daskreg("apply", store, data / str(PAIR.moving_labels), *to, log=log, threads=threads)
    dice = PAIR.overlaps(data, labels)
    run = RunStore.open(str(store))
    seconds = {k: round(v, 2) for k, v in run.provenance["seconds"].items()}
    losses = [round(level["losses"][-1], 6) for level in run.provenance["levels"] if level["losses"]]
    row = {
        "case": PAIR.case,
        "program": device,
        "dice": round(float(np.mean(list(dice.values()))), 4),
        "losses": losses,
        "wall": took.seconds,
    }
    return {**row, "seconds": seconds, "gpu": run.provenance["machine"].get("gpu")}, run


def mixed(name: str, path: Path) -> Path:
    """A preset as a recipe whose deformable stages use mixed storage."""
    tree = preset(name).model_dump(mode="json")
    stages = [{**s, "storage": "mixed"} if s["stage"] == "deformable" else s for s in tree["stages"]]
    path.write_text(yaml.safe_dump({**tree, "stages": stages}))
    return path


def apart(a: RunStore, b: RunStore) -> dict[str, Any]:
    """Distances between two displacements, mm."""
    x, y = (np.asarray(r.displacement(), np.float32) for r in (a, b))
    length, size = np.linalg.norm(x - y, axis=0), np.linalg.norm(y, axis=0)
    found = {"mean": length.mean(), "median": np.median(length), "p99": np.percentile(length, 99), "of_mean": size.mean()}
    return {"bit_identical": bool(np.array_equal(x, y)), "apart_mm": {k: round(float(v), 4) for k, v in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the volumes")
    parser.add_argument("--preset", default="brain")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work, runs = Path(scratch), {}
        for name in ("cpu", "cuda", "cuda_again", "cuda_mixed"):
            recipe = (
                ["--config", str(mixed(given.preset, work / "mixed.yaml"))]
                if name == "cuda_mixed"
                else ["--preset", given.preset]
            )
            row, runs[name] = register(name, work, given.data, recipe)
            measure.emit(row, rows)
        for a, b in (("cuda", "cpu"), ("cuda", "cuda_again"), ("cuda", "cuda_mixed")):
            measure.emit({"case": PAIR.case, "program": f"{a} against {b}", **apart(runs[a], runs[b])}, rows)
        measure.save(rows, OUT)


if __name__ == "__main__":
    main()

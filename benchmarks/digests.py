"""SHA-256 digests of what registrations give: whether a change to the code changes a bit of the results.

    python benchmarks/digests.py --record before.json          # at the commit to compare with
    python benchmarks/digests.py --compare before.json         # later, on the same machine; exit code 1 where a digest differs

Runs the bundled 3 mm pair with every similarity, with masks, on 1 and 3 workers, with every residency. ``--device cuda`` runs the
same on one GPU (and, where there are more, with several workers). ``--only PATTERN`` selects cases. Digests depend on the
processor (its vector instructions) and on the versions of Numba and LLVM, so they are compared on one machine and are not kept
in the repository.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import daskreg
from daskreg import LNCC, MI, MSE, Affine, Deformable, Moments, Rigid

SHORT = {"scales": (4, 2, 1), "iterations": (12, 8, 4)}
LINEAR = {"scales": (4, 2), "iterations": (10, 6)}
CUT = (("1", 1, "auto"), ("3-replicate", 3, "replicate"), ("3-window", 3, "window"), ("3-ring", 3, "ring"))


def stages(similarity: Any, **deformable: Any) -> list[Any]:
    """A rigid and a short deformable stage with one similarity."""
    return [Moments(), Rigid(similarity=similarity, **LINEAR), Deformable(similarity=similarity, **SHORT, **deformable)]


RECIPES: dict[str, Callable[[], Any]] = {
    "brain": lambda: "brain",
    "multimodal": lambda: "multimodal",
    "mse": lambda: stages(MSE()),
    "lncc-exact": lambda: stages(LNCC(radius=2)),
    "lncc-center": lambda: stages(LNCC(radius=3, gradient="center")),
    "mi": lambda: stages(MI()),
    "smooth": lambda: stages(MSE(), smooth_gradient=2.5, smooth_warp=1.5),
    "unsmoothed": lambda: stages(LNCC(), smooth_gradient=0.0, smooth_warp=0.0),
    "affine": lambda: [Affine(similarity=MI(), **LINEAR)],
}
MASKED = ("mse", "lncc-exact", "lncc-center", "mi")


def cases(device: str, workers: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Configuration and keywords of ``register``, by name."""
    cut = [c for c in CUT if c[1] <= workers]
    found = {f"{n}/{c}": (r(), {"workers": w, "residency": s}) for n, r in RECIPES.items() for c, w, s in cut}
    found |= {f"{n}/masks/{c}": (RECIPES[n](), {"workers": w, "residency": s, "masks": True}) for n in MASKED for c, w, s in cut}
    if device == "cuda":
        found |= {f"{n}/mixed/1": (stages(s, storage="mixed"), {"workers": 1}) for n, s in
                  (("mse", MSE()), ("lncc-exact", LNCC()), ("lncc-center", LNCC(gradient="center")), ("mi", MI()))}  # fmt: skip
    return found


def pair() -> tuple[str, str]:
    """Paths of the bundled 3 mm heads: fixed, moving."""
    data = files("daskreg") / "data"
    return str(data / "quickstart_mni2009c_T1_3mm.nii.gz"), str(data / "quickstart_colin27_T1_3mm.nii.gz")


def masks(folder: Path) -> dict[str, Any]:
    """Soft weights made of both images."""
    found = {}
    for name, path in zip(("fixed_mask", "moving_mask"), pair(), strict=True):
        voxels = np.asarray(daskreg.open_volume(path).data).astype(np.float32)
        found[name] = np.clip(voxels / np.percentile(voxels, 60), 0, 1).astype(np.float32)
    return found


def digest(array: Any) -> str:
    """Of the bytes, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:24]


def run(config: Any, given: dict[str, Any], device: str, folder: Path) -> dict[str, Any]:
    """Digests of one registration."""
    given = dict(given)
    if given.pop("masks", False):
        given |= masks(folder)
    start = time.perf_counter()
    result = daskreg.register(*pair(), config, output=folder / "run.zarr", overwrite=True, device=device, **given)
    found = {
        "seconds": round(time.perf_counter() - start, 2),
        "affine": digest(result.affine),
        "moved": digest(result.moved.data),
    }
    if result.displacement is not None:
        found["displacement"] = digest(result.displacement)
    return found


def main() -> int:
    """Run what was asked for; 1 where a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=3, help="run the cases of at most so many workers")
    parser.add_argument("--only", default="*")
    given = parser.parse_args()
    before = json.loads(given.compare.read_text()) if given.compare else {}
    found: dict[str, Any] = {}
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, keywords) in cases(given.device, given.workers).items():
            if not fnmatch.fnmatch(name, given.only):
                continue
            found[name] = run(config, keywords, given.device, Path(folder))
            was = before.get(name, {})
            wrong = [k for k, v in found[name].items() if k != "seconds" and k in was and was[k] != v]
            differing += [f"{name}: {k}" for k in wrong]
            print(json.dumps({"case": name, **found[name], "was": was.get("seconds"), "differs": wrong}), flush=True)
    if given.record:
        given.record.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} cases, {len(differing)} digests differ" + "".join(f"\n  {d}" for d in differing))
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())

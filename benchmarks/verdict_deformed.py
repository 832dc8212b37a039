"""Whether the verdict tells displacements that harm: images in one contrast and in two, deformed by presets for either.

    python benchmarks/verdict_deformed.py --data DIR --seed 5000 --poses 4

All begin at the truth, without a search. ``posed``: the pairs of ``capture_range.py`` in its poses, of which all but tissue are
in two contrasts, so that ``lightsheet`` and ``brain``, which compare one contrast, are the wrong presets. ``same``: an image
twice, with noise of 1, 5 and 15 % of its 99th percentile; ``warped``: the same with a known smooth warp, a voxel in the mean.
Presets are without their search; ``mse`` and ``ngf`` are an affine and a deformable stage by these.

A displacement has harmed where the mean error over the fixed image's object is more than a voxel of the moving image larger with
it than by the affine map alone. Both limits (``KEPT_INFORMATION`` and ``EXTREME_SHARE`` of ``engine/verdict.py``) were chosen on
seed 5000; others are only reported on. ``before`` is the verdict without them.
Writes ``benchmarks/results/verdict_deformed.json``, one row a result.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import capture_range
import numpy as np
from capture_range import Array, Pair, images_of, read
from false_motion import smooth_warp
from measure import commit
from scipy.ndimage import map_coordinates

from daskreg import MSE, NGF, PRESETS, Affine, Config, Deformable
from daskreg.comm import SingleRank
from daskreg.engine.coarse_pair import CoarsePair, coarse_pair
from daskreg.engine.evidence import gather_evidence
from daskreg.engine.measure import folding
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.engine.verdict import judge
from daskreg.planning import make_plan
from daskreg.transforms.linear import transform_points

NOISE = (0.01, 0.05, 0.15)
WARP = 1.0, 12.0  # voxels: mean length, width
TEMPLATES = {
    "colin27": ("quickstart_colin27_T1_3mm.nii.gz", (1, 1, 1)),
    "mni2009c": ("quickstart_mni2009c_T1_3mm.nii.gz", (1, 1, 1)),
    "mouse": ("brainglobe_mousebrain_3D.nii.gz", (4, 4, 4)),
    "nuclei": ("napari_nuclei_3D.nii.gz", (2, 2, 2)),
}


def known_warp(pair: Pair, seed: int) -> Array:
    """Of the fixed image's grid, (3, Z, Y, X) voxels."""
    spacing = float(np.prod(pair.fixed_grid.spacing)) ** (1 / 3)
    return np.asarray(smooth_warp(pair, WARP[0] * spacing, WARP[1] * spacing, seed), np.float32)


def cases(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Pair, Array | None]]:
    """What each is called, the pair, and its true displacement in voxels of the fixed image, if it has one."""
    for name in args.only.split(","):
        pair = capture_range.PAIRS[name](args.data)
        for k in range(args.poses):
            pose = capture_range.draw_pose(args.seed, k, pair)
            yield {"kind": "posed", "pair": name, "pose": k, "resampled": pose.resampled}, capture_range.posed(pair, pose), None
    rng = np.random.default_rng(args.seed)
    for name, (file, factors) in TEMPLATES.items():
        voxels, grid = read(args.data / file, factors)
        top = np.percentile(voxels, 99)
        for noise in NOISE:
            u = known_warp(Pair(name, voxels, grid, voxels, grid, np.eye(4)), int(rng.integers(1 << 31)))
            for kind, truth in (("same", None), ("warped", u)):
                at = np.indices(voxels.shape) + (0 if truth is None else truth)
                first = voxels if truth is None else map_coordinates(voxels, at, order=1, mode="nearest")
                fixed, moving = (v + noise * top * rng.standard_normal(v.shape) for v in (first, voxels))
                pair = Pair(name, fixed.astype(np.float32), grid, moving.astype(np.float32), grid, np.eye(4))
                yield {"kind": kind, "pair": name, "noise": noise}, pair, truth


def recipes(kind: str) -> dict[str, Config]:
    """By name."""
    found = {name: PRESETS[name] for name in ("lightsheet", "multimodal", "brain")}
    found = {
        name: c.model_copy(update={"stages": tuple(s for s in c.stages if s.stage not in ("search", "moments"))})
        for name, c in found.items()
    }
    if kind != "posed":
        for name, similarity in (("mse", MSE()), ("ngf", NGF())):
            found[name] = Config(stages=(Affine(), Deformable(similarity=similarity)))
    return found


def errors(coarse: CoarsePair, pair: Pair, truth: Array | None) -> tuple[float, float]:
    """Mean over the fixed image's object, where the moving image shows it, by the affine map alone and with the displacement."""
    grid, fixed = coarse.fixed.grid, coarse.fixed.voxels
    at = np.argwhere(fixed > 0.15 * np.percentile(fixed, 99))
    points = grid.to_world(at)
    right = points
    if truth is not None:
        fine = pair.fixed_grid.to_index(points)
        right = pair.fixed_grid.to_world(fine + np.stack([map_coordinates(c, fine.T, order=1, mode="nearest") for c in truth], 1))
    right = transform_points(pair.truth, right)
    index, size = pair.moving_grid.to_index(right), np.array(pair.moving.shape)
    shown = ((index > -0.5) & (index < size - 0.5)).all(axis=1)
    nearest = np.clip(np.round(index), 0, size - 1).astype(int)
    shown &= pair.moving[tuple(nearest.T)] != 0
    assert coarse.displacement is not None
    moved = grid.to_world(at + coarse.displacement[:, *at.T].T)
    voxel = float(np.prod(pair.moving_grid.spacing)) ** (1 / 3)
    affine, total = (np.linalg.norm(transform_points(coarse.world, x) - right, axis=1)[shown].mean() for x in (points, moved))
    return float(affine / voxel), float(total / voxel)


def measured(pair: Pair, truth: Array | None, config: Config) -> dict[str, Any]:
    """A result, its errors and its verdict."""
    images, plan = images_of(pair, config), make_plan(pair.fixed_grid, pair.moving_grid, config)
    outcome = Rank(plan, images, pair.truth, SingleRank(), Watch()).run()
    coarse = coarse_pair(plan, outcome, images, SingleRank())
    evidence, _ = gather_evidence(coarse, pair.truth)
    levels = [level.as_dict() for level in outcome.levels]
    assert outcome.displacement is not None
    jacobian = folding(outcome.displacement, outcome.block, SingleRank())
    error = errors(coarse, pair, truth)
    return {
        "errors": [round(e, 3) for e in error],
        "harmed": error[1] > error[0] + 1,
        "information": [round(evidence.affine_information, 4), round(evidence.information, 4)],
        "extreme_percent": round(jacobian["extreme_percent"], 3),
        "verdict": judge(evidence, levels, jacobian).status,
        "before": judge(
            replace(evidence, information=evidence.affine_information), levels, jacobian | {"extreme_percent": 0}
        ).status,
    }


def main() -> None:
    """Measure all pairs by all recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5100)
    parser.add_argument("--poses", type=int, default=4)
    parser.add_argument("--only", default="fish,nuclei,mouse,solid,brain", help="pairs of capture_range.py, comma-separated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verdict_deformed.json")
    args = parser.parse_args()
    rows = [r for r in json.loads(args.out.read_text()) if r["seed"] != args.seed] if args.out.exists() else []
    for case, pair, truth in cases(args):
        for name, config in recipes(case["kind"]).items():
            rows.append({"seed": args.seed, **case, "preset": name, **measured(pair, truth, config), "commit": commit()})
            print(rows[-1], flush=True)
    mine = [row for row in rows if row["seed"] == args.seed]
    for when in ("before", "verdict"):
        print(when, Counter(("harmed" if row["harmed"] else "not harmed", row[when]) for row in mine))
    args.out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()

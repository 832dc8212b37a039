"""Whether the verdict tells right results from wrong ones: starts near the truth and far from it, four recipes, real pairs.

    python benchmarks/verdict.py --data DIR --set tune --seed 0 --starts 6
    python benchmarks/verdict.py --data DIR --set report --seed 100 --starts 5

Every pair is registered without a search from a start that is ``near`` the truth (up to 8 degrees), ``rotated`` (20 to 180),
``shifted`` (30 to 50 % of the image), with the moving image ``flipped`` along an axis, or with the moving image of an ``other``
pair. What comes out is called

- right, where the affine map is within 1.5 % of the fixed image's diagonal of the truth, in the mean over its object,
- wrong, beyond 5 %, and always for another object,
- mirror, where a flipped image came within 6 % of where it was before it was flipped: a match of a symmetric object's halves,
- between otherwise; these are in no rate.

Thresholds were chosen on the set ``tune``, seed 0. After a look at ``report``, seed 100, two rules were added: more than 45 % no
better than chance is doubtful, and what stands out from all other poses is doubtful, not failed. After a look at seed 200 the
refinement of other poses was added, and that a level that ended early counts only in doubt; seed 300 was drawn after that. After
seed 200 of ``report``, edges were compared; then ``apart``, seed 400, was drawn, whose pairs had not been looked at; in view of
it a better pose had to be better by a tenth; ``report``, seed 500, was drawn then. Seeds 600 and 601 of both sets were drawn
then, with drift; after a look at them a stretch by half became doubtful, and seed 700 of both was drawn. Seed 800 of all three
was drawn last. Since seed 400 another object is of another kind: a head can be registered with another head. The
pairs of both sets are different, some images are not: templates, Colin27 and the T1 of ``epi`` are in both.

Pairs of ``filled`` are those of ``capture_range.py`` in its poses: cut, so that they share 50 to 100 %, and the moving image
resampled on another grid with zeros around it, not flipped (a symmetric object's halves match far from where it was). They are
registered and judged as after a search that left filling out. No threshold was chosen on them; that the verdict leaves it out
was decided in view of poses of seed 4000; ``with_filling`` is what the verdict would be if it did not. Writes
``benchmarks/results/verdict.json``, one row a result.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import capture_range
import numpy as np
from capture_range import Array, Matrix, Pair, error, images_of, other_contrast, registered
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from daskreg import NGF, PRESETS, Affine, Config, Deformable, Grid, Moments, Region, Rigid
from daskreg.comm import SingleRank
from daskreg.config import Search, Stage
from daskreg.engine.coarse_pair import coarse_pair
from daskreg.engine.evidence import gather_evidence
from daskreg.engine.images import Image
from daskreg.engine.measure import folding, likeness
from daskreg.engine.pose_search import PoseSearch
from daskreg.engine.rank import Rank
from daskreg.engine.report import LevelReport, Outcome, Watch
from daskreg.engine.shared_out import SharedOut
from daskreg.engine.verdict import judge, losses
from daskreg.planning import Plan, make_plan
from daskreg.transforms.linear import linear_about, transform_points, translation

RIGHT, WRONG, MIRROR = 1.5, 5.0, 6.0  # per cent of the diagonal
STARTS = ("near", "rotated", "shifted", "flipped", "other")
SETS = {
    "tune": ("brain", "mouse", "nuclei", "solid", "heads", "slab", "noisy", "plane", "blurred"),
    "report": ("epi", "fish", "oasis", "itk", "colin"),
    "apart": ("hires", "cat", "subject"),
    "filled": ("brain", "mouse", "nuclei", "solid", "fish"),
}
NO_HEADS = ("mouse", "nuclei", "solid", "fish")
EDGES = NGF(eta=0.05)
RECIPES: dict[str, tuple[Stage, ...]] = {
    "rigid": (PRESETS["rigid"].stages[1],),
    "mi": (Rigid(scales=(4, 2)), Affine(scales=(2,))),
    "deform": (Rigid(scales=(4, 2)), Affine(scales=(2,)), Deformable(scales=(4, 2), iterations=(60, 40))),
    "ngfdeform": (
        Rigid(similarity=EDGES, scales=(2,), iterations=(40,)),
        Deformable(similarity=EDGES, smooth_warp=1.5, scales=(4, 2), iterations=(60, 40)),
    ),
}


# --- pairs ------------------------------------------------------------------------------------------------------------


def _aligned(name: str, data: Path, fixed: str, moving: str, factors: Sequence[tuple[int, int, int]]) -> Pair:
    """The truth is where affine stages lead from the centres of mass."""
    (a, grid), (b, other) = (capture_range.read(data / f, k) for f, k in zip((fixed, moving), factors, strict=True))
    pair = Pair(name, a, grid, b, other, np.eye(4))
    stages = (Moments(), Rigid(scales=(4, 2)), Affine(scales=(2, 1)))
    return replace(pair, truth=registered(pair, Config(stages=stages), np.eye(4))[0][-1])


def heads(data: Path) -> Pair:
    """A template, and a subject with neck and shoulders."""
    return _aligned("heads", data, "mni152nlin6_T1_1mm.nii.gz", "pycortexS1_T1_1mm.nii.gz", ((3, 3, 3), (3, 3, 3)))


def oasis(data: Path) -> Pair:
    """Two brains without skull."""
    files = "mni152nlin6_T1_brain_1mm.nii.gz", "multipropreg_oasisatlas_T1_1mm.nii.gz"
    return _aligned("oasis", data, *files, ((3, 3, 3), (3, 3, 3)))


def itk(data: Path) -> Pair:
    """Two subjects, one with anisotropic voxels."""
    return _aligned("itk", data, "colin27_T1_1mm.nii.gz", "itkexamples_T1_2x2x3mm.nii.gz", ((3, 3, 3), (1, 1, 1)))


def colin(data: Path) -> Pair:
    """A template and a subject."""
    files = "quickstart_mni2009c_T1_3mm.nii.gz", "quickstart_colin27_T1_3mm.nii.gz"
    return _aligned("colin", data, *files, ((1, 1, 1), (1, 1, 1)))


def hires(data: Path) -> Pair:
    """Two brains without skull, one of them in detail."""
    files = "mni152nlin6_T1_brain_1mm.nii.gz", "colin27_hires_brain_T1_0p5mm.nii.gz"
    return _aligned("hires", data, *files, ((3, 3, 3), (6, 6, 6)))


def cat(data: Path) -> Pair:
    """A template, and a subject with anisotropic voxels in another contrast."""
    files = "mni152_2009c_asym_T1_cat12_1mm.nii.gz", "itkexamples_T1_2x2x3mm.nii.gz"
    pair = _aligned("cat", data, *files, ((3, 3, 3), (1, 1, 1)))
    return replace(pair, moving=other_contrast(pair.moving, 21))


def subject(data: Path) -> Pair:
    """Two subjects, one in another contrast."""
    files = "colin27_T1_1mm.nii.gz", "pycortexS1_T1_1mm.nii.gz"
    pair = _aligned("subject", data, *files, ((3, 3, 3), (3, 3, 3)))
    return replace(pair, fixed=other_contrast(pair.fixed, 22))


def slab(data: Path) -> Pair:
    """A slab of 42 mm of a template, in another contrast, and a subject."""
    pair, part = heads(data), slice(20, 34)
    region = Region((20, 0, 0), (34, *pair.fixed_grid.shape[1:]))
    fixed = np.ascontiguousarray(other_contrast(pair.fixed, 11)[part])
    return replace(pair, name="slab", fixed=fixed, fixed_grid=pair.fixed_grid.crop(region))


def noisy(data: Path) -> Pair:
    """``colin`` across contrasts, with noise of a third of the intensities."""
    pair, rng = colin(data), np.random.default_rng(5)

    def with_noise(image: Array) -> Array:
        noise = 0.35 * np.percentile(image, 99) * rng.standard_normal(image.shape)
        return np.asarray(image + noise, np.float32)

    return replace(pair, name="noisy", fixed=with_noise(pair.fixed), moving=with_noise(other_contrast(pair.moving, 6)))


def plane(data: Path) -> Pair:
    """One plane of a template, in two contrasts."""
    pair = heads(data)
    k = pair.fixed.shape[0] // 2
    grid = pair.fixed_grid.crop(Region((k, 0, 0), (k + 1, *pair.fixed_grid.shape[1:])))
    fixed, moving = (np.ascontiguousarray(v[k : k + 1]) for v in (pair.fixed, other_contrast(pair.fixed, 8)))
    return Pair("plane", fixed, grid, moving, grid, np.eye(4))


def blurred(data: Path) -> Pair:
    """``mouse``, the moving image without detail and with noise."""
    pair, rng = capture_range.mouse(data), np.random.default_rng(1)
    noise = 0.1 * rng.standard_normal(pair.moving.shape).astype(np.float32) * pair.moving.std()
    return replace(pair, name="blurred", moving=gaussian_filter(pair.moving, 2.5) + noise)


MADE: dict[str, Callable[[Path], Pair]] = {
    f.__name__: f for f in (heads, oasis, itk, colin, hires, cat, subject, slab, noisy, plane, blurred)
}


@cache
def pair_of(name: str, data: Path) -> Pair:
    """By name."""
    return (MADE | capture_range.PAIRS)[name](data)


# --- starts -----------------------------------------------------------------------------------------------------------


def start_of(pair: Pair, kind: str, rng: np.random.Generator) -> Matrix:
    """The map that a registration begins with."""
    middle = pair.fixed_grid.to_world(np.argwhere(pair.fixed > np.percentile(pair.fixed, 99) * 0.15).mean(0))
    longest, shift = pair.moving_grid.extent.max(), np.zeros(3)
    if kind == "near":
        angle, shift = rng.uniform(0, 8), rng.uniform(-0.03, 0.03, 3) * longest
    elif kind == "rotated":
        angle, shift = rng.uniform(20, 180), rng.uniform(-0.05, 0.05, 3) * longest
    elif kind == "shifted":
        angle, axis = rng.uniform(0, 10), rng.integers(3)
        thick = pair.moving_grid.extent[axis] > 0.5 * longest
        shift[axis] = rng.choice([-1, 1]) * (rng.uniform(0.3, 0.5) if thick else 0.3) * longest
    else:
        angle = rng.uniform(0, 180 if kind == "other" else 10)
    axis_of = rng.normal(size=3)
    turn = Rotation.from_rotvec(axis_of / np.linalg.norm(axis_of) * np.radians(angle)).as_matrix()
    return translation(shift) @ linear_about(transform_points(pair.truth, middle[None])[0], turn) @ pair.truth


@cache
def filled_pair(name: str, index: int, seed: int, data: Path) -> Pair:
    """In a pose of ``capture_range``, with zeros around the moving image."""
    whole = pair_of(name, data)
    pose = replace(capture_range.draw_pose(seed, index, whole), resampled=True)
    return replace(capture_range.posed(whole, pose), truth=capture_range.true_map(whole, pose))


def posed(
    name: str, names: Sequence[str], index: int, kind: str, seed: int, data: Path, *, filled: bool = False
) -> tuple[Pair, Matrix]:
    """The pair of a case and where it starts; filled: with zeros around the moving image."""
    rng = np.random.default_rng([seed, index, zlib.crc32((name + kind).encode())])
    pair = filled_pair(name, index, seed, data) if filled else pair_of(name, data)
    if kind == "flipped":
        pair = replace(pair, moving=np.ascontiguousarray(np.flip(pair.moving, int(rng.integers(3)))))
    if kind == "other":
        others = [n for n in names if n in NO_HEADS] if name not in NO_HEADS else [n for n in names if n not in NO_HEADS]
        pair = _with_other(pair, (others or NO_HEADS)[index % len(others or NO_HEADS)], data)
    return pair, start_of(pair, kind, rng)


def _with_other(pair: Pair, name: str, data: Path) -> Pair:
    """The moving image of another pair, as large as the own one, in its place."""
    other = pair_of("mouse" if name in ("plane", "slab") else name, data)
    scale = float((np.prod(pair.moving_grid.extent) / np.prod(other.moving_grid.extent)) ** (1 / 3))
    grid = Grid(other.moving.shape, tuple(np.asarray(other.moving_grid.spacing) * scale), unit=pair.fixed_grid.unit)
    target = transform_points(pair.truth, pair.fixed_grid.center[None])[0]
    return replace(pair, moving=other.moving, moving_grid=replace(grid, origin=tuple(target - grid.center)))


# --- runs -------------------------------------------------------------------------------------------------------------


def after_search(images: tuple[Image, Image], start: Matrix) -> list[LevelReport]:
    """As of a search that left out what may be filling."""
    search = PoseSearch(Search(rotations="fine"), images, start, SharedOut(SingleRank()), Watch())
    return [LevelReport("search", 1, images[0].grid.shape, detail=search.left_out().report())]


def measure(pair: Pair, stages: tuple[Stage, ...], start: Matrix, *, filled: bool = False) -> dict[str, Any]:
    """Register, judge, and compare with the truth; filled: as after a search that left filling out."""
    config, began = Config(stages=stages, percentiles=(0.0, 99.0)), time.perf_counter()
    images, plan = images_of(pair, config), make_plan(pair.fixed_grid, pair.moving_grid, config)
    rank = Rank(plan, images, start, SingleRank(), Watch())
    if filled:
        rank.reports = after_search(images, start)
    outcome = rank.run()
    seconds, began = time.perf_counter() - began, time.process_time()
    evidence, _ = gather_evidence(coarse_pair(plan, outcome, images, SingleRank()), np.eye(4))
    judged = time.process_time() - began
    u = outcome.displacement
    jacobian = {} if u is None else folding(u, outcome.block, SingleRank())
    first = Outcome(start, None, [], replace(outcome.block, halo=0))
    measures = tuple(likeness(plan, o, images, SingleRank()) for o in (first, outcome))
    verdict = judge(evidence, [level.as_dict() for level in outcome.levels], jacobian, (measures[0], measures[1]))
    diagonal = float(np.linalg.norm(pair.fixed_grid.extent) / np.prod(pair.fixed_grid.spacing) ** (1 / 3))
    also = {"with_filling": _status_with_filling(plan, outcome, images)} if filled else {}
    return also | {
        "error_percent": round(100 * error(pair, outcome.affine) / diagonal, 2),
        "status": verdict.status,
        "lost": {name: round(part, 4) for name, part in losses(*measures).items()},
        "evidence": {k: round(v, 3) if isinstance(v, float) else v for k, v in evidence.as_dict().items()},
        "seconds": round(seconds, 2),
        "judge_seconds": round(judged, 3),
    }


def _status_with_filling(plan: Plan, outcome: Outcome, images: tuple[Image, Image]) -> str:
    """As if no search had left it out."""
    levels = [level for level in outcome.levels if level.stage != "search"]
    evidence, _ = gather_evidence(coarse_pair(plan, replace(outcome, levels=levels), images, SingleRank()), np.eye(4))
    return judge(evidence, [level.as_dict() for level in levels]).status


def truth_of(row: dict[str, Any]) -> str:
    """right, wrong, mirror or between."""
    if row["start"] == "flipped" and row["error_percent"] < MIRROR:
        return "mirror"
    if row["start"] in ("flipped", "other") or row["error_percent"] > WRONG:
        return "wrong"
    return "right" if row["error_percent"] < RIGHT else "between"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Counts of verdicts by set and truth."""
    counts = Counter((row["set"], truth_of(row), row["status"]) for row in rows)
    lines = [f"{'set':8}{'truth':10}{'ok':>6}{'doubtful':>10}{'failed':>8}"]
    for name in SETS:
        for truth in ("right", "wrong", "mirror", "between"):
            ok, doubtful, failed = (counts[name, truth, status] for status in ("ok", "doubtful", "failed"))
            lines.append(f"{name:8}{truth:10}{ok:6}{doubtful:10}{failed:8}")
    return lines


def main() -> None:
    """Measure one set at one seed; rows of others stay in the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="report")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--only", default="", help="pairs of the set, comma-separated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verdict.json")
    args = parser.parse_args()
    names, filled = SETS[args.set], args.set == "filled"
    rows = (
        [r for r in json.loads(args.out.read_text()) if (r["set"], r["seed"]) != (args.set, args.seed)]
        if args.out.exists()
        else []
    )
    for index in range(args.starts):
        for name in args.only.split(",") if args.only else names:
            for kind in [k for k in STARTS if k != "flipped" or not filled]:
                recipe = list(RECIPES)[index % len(RECIPES)]
                pair, start = posed(name, names, index, kind, args.seed, args.data, filled=filled)
                case = {"set": args.set, "pair": name, "start": kind, "seed": args.seed, "index": index, "recipe": recipe}
                rows.append(case | measure(pair, RECIPES[recipe], start, filled=filled))
                print(name, kind, recipe, rows[-1]["error_percent"], truth_of(rows[-1]), rows[-1]["status"], flush=True)
                args.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

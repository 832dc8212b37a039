"""From how far away the search finds a pair: random poses of real pairs and a phantom, by ``rigid``'s stages, on one process.

    python benchmarks/capture_range.py --data DIR --poses 20 --only brain,solid [--opponents greedy_search,ants_search]
    python benchmarks/capture_range.py --join FILE FILE ...    # rows of several runs, of which each was a part
    python benchmarks/capture_range.py --draw 3800    # success over rotation, shift and overlap, of poses of a seed

Every pose turns the moving image by any rotation and shifts it. Both images are also cut, from opposite ends, such that they
share ``overlap`` of what is left (1 to 0.5). Half of the poses change the header alone, exactly; the others resample
the voxels on a grid along the world's axes and fill what lies outside with 0. Poses are drawn from a fixed seed. The
truth is known where one image was made from the other, by the published matrix for T1 and EPI, and for ``brain``
and ``fish`` it is where the linear stages end that start at the right place, in every pose before its voxels are resampled;
where they left it (``truth_moved``, in voxels) a row tells nothing of the search.

A pose counts as found where the mean distance to the truth, over the voxels of the fixed image that are not background, is at
most one voxel of the fixed image (the geometric mean of its spacing). Constants of the search were chosen with seed 0: report
another. Opponents (``opponents.py``) get the same images as NIfTI, are run with two threads, and search all rotations too.
``--angles 0,90`` leaves out poses that turn by more, since most random rotations are large. Adds its rows to
``benchmarks/results/capture_range.json``, in place of those of the same pose, preset, program and commit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import opponents
from measure import commit, machine
from multimodal import read_matrix
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from daskreg import PRESETS, Config, Grid, Region, Search, open_volume
from daskreg.comm import SingleRank
from daskreg.engine.images import Image, downsample, normalise
from daskreg.engine.rank import Rank
from daskreg.engine.report import LevelReport, Watch
from daskreg.kernels.device import CPU, Device
from daskreg.planning import make_plan
from daskreg.transforms.linear import linear_about, transform_points, translation

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
SAMPLES, STEP = 5000, 30  # of greedy's random search, and degrees of ANTs' regular one
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS
KEPT = 3  # refined candidates in a row
BINS = {  # of what is drawn: its name, and the ends of intervals
    "angle": ("rotation, degrees", (0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.1)),
    "shift": ("shift, parts of the image", (0.0, 0.1, 0.2, 0.3, 0.4, 0.6)),
    "overlap": ("in common", (0.5, 0.6, 0.7, 0.8, 0.9, 1.01)),
}


@dataclass(frozen=True)
class Pair:
    """Two images with their grids, and the map from fixed to moving points (world, 4 x 4, order z, y, x)."""

    name: str
    fixed: Array
    fixed_grid: Grid
    moving: Array
    moving_grid: Grid
    truth: Matrix
    least_overlap: float = 0.5
    estimated: bool = False  # the truth is where the linear stages lead, in every pose afresh: what is cut off changes it


@dataclass(frozen=True)
class Pose:
    """Of the moving image: a rotation about its centre, then a shift; what the images share; whether voxels are resampled."""

    rotation: Matrix
    shift: Matrix
    overlap: float
    axis: int
    resampled: bool

    @property
    def angle(self) -> float:
        """Degrees."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.rotation) - 1) / 2, -1, 1))))


def draw_pose(seed: int, index: int, pair: Pair) -> Pose:
    """The pose of a number; overlap from ``least_overlap`` to 1, shift up to a quarter of the moving image's longest edge."""
    rng = np.random.default_rng([seed, index])
    rotation = Rotation.random(random_state=rng).as_matrix()
    shift = rng.uniform(-0.25, 0.25, 3) * pair.moving_grid.extent.max()
    extent = pair.fixed_grid.extent
    axis = int(rng.choice(np.flatnonzero(extent > 0.6 * extent.max())))
    return Pose(rotation, shift, float(rng.uniform(pair.least_overlap, 1)), axis, bool(index % 2))


def posed(pair: Pair, pose: Pose) -> Pair:
    """The pair with both images cut and the moving one moved."""
    keep = 1 / (2 - pose.overlap)
    fixed, fixed_grid = cut(pair.fixed, pair.fixed_grid, pose.axis, keep, first=True)
    along = np.abs(
        np.asarray(pair.moving_grid.direction).T @ pair.truth[:3, :3] @ np.asarray(pair.fixed_grid.direction)[:, pose.axis]
    )
    other = int(np.argmax(along))
    sign = (pair.moving_grid.world_to_index @ pair.truth @ pair.fixed_grid.index_to_world)[other, pose.axis]
    moving, grid = cut(pair.moving, pair.moving_grid, other, keep, first=bool(sign < 0))
    move = translation(pose.shift) @ linear_about(grid.center, pose.rotation)
    moved_grid = Grid.from_matrix(grid.shape, move @ grid.index_to_world, grid.unit)
    truth = move @ pair.truth
    if pose.resampled:
        moving, moved_grid = resampled(moving, moved_grid)
    return replace(pair, fixed=fixed, fixed_grid=fixed_grid, moving=moving, moving_grid=moved_grid, truth=truth)


def cut(image: Array, grid: Grid, axis: int, keep: float, *, first: bool) -> tuple[Array, Grid]:
    """A part of an image along an axis, from its first end or its last."""
    n = grid.shape[axis]
    size = round(n * keep)
    start, stop = [0, 0, 0], list(grid.shape)
    start[axis], stop[axis] = (0, size) if first else (n - size, n)
    region = Region(tuple(start), tuple(stop))
    return np.ascontiguousarray(image[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]), grid.crop(region)


def resampled(image: Array, grid: Grid) -> tuple[Array, Grid]:
    """On a grid along the world's axes with the same voxel volume, which holds all of it, 0 outside."""
    corners = grid.corners()
    spacing = float(np.prod(grid.spacing)) ** (1 / 3)
    low, high = corners.min(0), corners.max(0)
    n = np.ceil((high - low) / spacing).astype(int) + 1
    target = Grid(tuple(n), (spacing,) * 3, tuple(low), unit=grid.unit)
    m = grid.world_to_index @ target.index_to_world
    return affine_transform(image, m[:3, :3], m[:3, 3], target.shape, np.float32, order=1, mode="grid-constant"), target


# --- pairs ------------------------------------------------------------------------------------------------------------


def read(
    path: Path | str, factors: tuple[int, int, int] = (1, 1, 1), start: tuple[int, int, int] = (0, 0, 0)
) -> tuple[Array, Grid]:
    """An image from a first voxel on, reduced."""
    volume = open_volume(str(path))
    region = Region(start, volume.grid.shape)
    image = np.ascontiguousarray(np.asarray(volume.data)[tuple(slice(a, None) for a in start)], np.float32)
    return downsample(image, factors), volume.grid.crop(region).coarsen(factors)


def other_contrast(image: Array, seed: int) -> Array:
    """Another modality: bright turns dark above the background, middle tones come first; a receive field, and noise."""
    top = float(np.percentile(image, 99.5))
    v = np.clip(image / top, 0, 1)
    body = 1 / (1 + np.exp(-(v - 0.12) / 0.03))
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(image.shape), np.asarray(image.shape) / 4)
    field /= np.abs(field).max()
    contrast = body * (1.1 - 0.9 * v) * (1 + 0.3 * field)
    return np.asarray(contrast + 0.03 * rng.standard_normal(image.shape), np.float32)


def brain(data: Path) -> Pair:
    """A template, and a subject in another contrast."""
    fixed, grid = read(data / "quickstart_mni2009c_T1_3mm.nii.gz")
    moving, other = read(data / "quickstart_colin27_T1_3mm.nii.gz")
    return aligned(Pair("brain", fixed, grid, other_contrast(moving, 1), other, np.eye(4), estimated=True))


def epi(data: Path) -> Pair:
    """A slab of EPI, and the same head's T1."""
    fixed, grid = read(data / "pycortexS1_EPI_fullhead.nii.gz", (1, 2, 2))
    moving, other = read(data / "pycortexS1_T1_1mm.nii.gz", (3, 3, 3))
    ras = np.loadtxt(data / "pycortexS1_T1_to_EPIfullhead_world_matrix.txt")
    truth = np.linalg.inv(reversed_axes(FLIP @ ras @ FLIP))
    return Pair("epi", fixed, grid, moving, other, truth, least_overlap=0.8)


def fish(data: Path) -> Pair:
    """Two rounds of expansion microscopy of one tissue."""
    fixed, grid = read(f"{data}/easi_fish_fixed.ome.zarr::level=2")
    moving, other = read(f"{data}/easi_fish_moving.ome.zarr::level=2")
    truth = translation(np.array([-3, -12, -42]) * [1.68, 1.84, 1.84])
    return aligned(Pair("fish", fixed, grid, moving, other, truth, estimated=True))


def nuclei(data: Path) -> Pair:
    """Nuclei, and the same in another contrast, with voxels between those of the first."""
    path = data / "napari_nuclei_3D.nii.gz"
    fixed, grid = read(path, (2, 4, 4))
    moving, other = read(path, (2, 4, 4), (1, 2, 2))
    return Pair("nuclei", fixed, grid, other_contrast(np.log1p(moving), 2), other, np.eye(4))


def mouse(data: Path) -> Pair:
    """A mouse brain, and the same in another contrast, with voxels between those of the first."""
    path = data / "brainglobe_mousebrain_3D.nii.gz"
    fixed, grid = read(path, (4, 4, 4))
    moving, other = read(path, (4, 4, 4), (2, 2, 2))
    return Pair("mouse", fixed, grid, other_contrast(moving, 3), other, np.eye(4))


def solid(data: Path) -> Pair:
    """A cylinder of stones in mortar with pores, as two kinds of radiation see it."""
    rng = np.random.default_rng(4)
    shape = (112, 120, 120)
    stones, pores = (gaussian_filter(rng.standard_normal(shape), s) for s in (6.0, 3.0))
    stone, pore = stones > np.quantile(stones, 0.65), pores > np.quantile(pores, 0.92)
    _, y, x = np.indices(shape) - (np.asarray(shape).reshape(3, 1, 1, 1) - 1) / 2
    within = np.hypot(y, x) < 56

    def seen(mortar: float, aggregate: float, void: float) -> Array:
        values = np.where(pore, void, np.where(stone, aggregate, mortar))
        noisy = gaussian_filter(np.where(within, values, 0.0), 1) + 0.08 * rng.standard_normal(shape)
        return noisy.astype(np.float32)

    first, second = seen(0.55, 0.9, 0.05), seen(0.9, 0.35, 0.15)
    halves, grid = (2, 2, 2), Grid(shape, unit="mm")
    off = Region((1, 1, 1), shape)
    moving = downsample(np.ascontiguousarray(second[1:, 1:, 1:]), halves)
    return Pair("solid", downsample(first, halves), grid.coarsen(halves), moving, grid.crop(off).coarsen(halves), np.eye(4))


PAIRS: dict[str, Callable[[Path], Pair]] = {f.__name__: f for f in (brain, epi, fish, nuclei, mouse, solid)}


# --- runs -------------------------------------------------------------------------------------------------------------


def images_of(pair: Pair, config: Config, device: Device = CPU) -> tuple[Image, Image]:
    """Both as a configuration compares them, whole in this process."""
    images = []
    for voxels, grid in ((pair.fixed, pair.fixed_grid), (pair.moving, pair.moving_grid)):
        image = Image.whole(device.put(voxels.copy()), grid)
        normalise(image.voxels, config, SingleRank(), pair.name)
        images.append(image)
    return images[0], images[1]


def registered(pair: Pair, config: Config, start: Matrix, device: Device = CPU) -> tuple[list[Matrix], list[LevelReport]]:
    """The map after every stage, by one rank in this process, and the reports."""
    watch = _Maps()
    plan = make_plan(pair.fixed_grid, pair.moving_grid, config)
    watch.rank = Rank(plan, images_of(pair, config, device), start, SingleRank(), watch)
    outcome = watch.rank.run()
    return [watch.maps[k] for k in range(len(config.stages))], outcome.levels


class _Maps(Watch):
    """Keeps the map after every stage of a rank."""

    def __init__(self) -> None:
        super().__init__()
        self.rank: Rank | None = None
        self.maps: dict[int, Matrix] = {}

    def level_ended(self, level: LevelReport) -> None:
        """Of the stage at hand."""
        assert self.rank is not None
        self.maps[self.rank.at.stage] = self.rank.world
        super().level_ended(level)


def aligned(pair: Pair, device: Device = CPU) -> Pair:
    """With the truth replaced by where the linear stages of ``rigid`` lead from it."""
    linear = PRESETS["rigid"].model_copy(
        update={"stages": tuple(s for s in PRESETS["rigid"].stages if not isinstance(s, Search))}
    )
    return replace(pair, truth=registered(pair, linear, pair.truth, device)[0][-1])


def error(pair: Pair, world: Matrix) -> float:
    """Mean distance to the truth over the fixed image's voxels that are not background, in voxels."""
    at = np.argwhere(pair.fixed > np.percentile(pair.fixed, 99) * 0.15)[::17]
    points = pair.fixed_grid.to_world(at)
    apart = np.linalg.norm(transform_points(world, points) - transform_points(pair.truth, points), axis=1)
    return float(apart.mean() / np.prod(pair.fixed_grid.spacing) ** (1 / 3))


def described(pair: Pair, index: int, pose: Pose) -> dict[str, Any]:
    """What a row says of its pose."""
    return {
        "pair": pair.name, "pose": index, "angle": round(pose.angle, 1), "overlap": round(pose.overlap, 3),
        "shift": round(float(np.linalg.norm(pose.shift)) / float(pair.fixed_grid.extent.max()), 3),
        "resampled": pose.resampled,
    }  # fmt: skip


def measure(pair: Pair, index: int, pose: Pose, config: Config, device: Device = CPU) -> dict[str, Any]:
    """One row."""
    placed = posed(pair, pose)
    case = replace(placed, truth=true_map(pair, pose, device))
    start = time.perf_counter()
    maps, reports = registered(case, config, np.eye(4), device)
    seconds = time.perf_counter() - start
    errors = [round(error(case, m), 3) for m in maps]
    search = next((r for r in reports if r.stage == "search"), None)
    return {
        **described(pair, index, pose), "truth_moved": round(error(placed, case.truth), 3), "errors": errors,
        "found": errors[-1] <= 1, "seconds": round(seconds, 2), "search_seconds": round(search.seconds, 2) if search else 0,
        "search": condensed(search.detail) if search else {},
    }  # fmt: skip


def reversed_axes(matrix: Matrix) -> Matrix:
    """From the order x, y, z to z, y, x, or back."""
    return np.asarray(matrix[[2, 1, 0, 3]][:, [2, 1, 0, 3]])


def save_nifti(path: str, voxels: Array, grid: Grid) -> None:
    """An image with its position."""
    nib.save(nib.Nifti1Image(voxels.T, FLIP @ reversed_axes(grid.index_to_world)), path)


def measure_opponent(
    pair: Pair, index: int, pose: Pose, name: str, home: Path, extra: dict[str, Any], truth: Matrix
) -> dict[str, Any]:
    """One row of another program; ``truth`` as for daskreg."""
    placed = replace(posed(pair, pose), truth=truth)
    with tempfile.TemporaryDirectory() as folder:
        fixed, moving = f"{folder}/fixed.nii", f"{folder}/moving.nii"
        save_nifti(fixed, placed.fixed, placed.fixed_grid)
        save_nifti(moving, placed.moving, placed.moving_grid)
        job = opponents.Job(fixed, moving, folder, dof=6, deformable=False, iterations="100x100", extra=extra)
        found = opponents.RUNNERS[name](job, home)
        ras = read_matrix(found["matrix"])
    off = error(placed, reversed_axes(FLIP @ ras @ FLIP))
    return {
        **described(pair, index, pose), "program": name, "errors": [round(off, 3)], "found": off <= 1,
        "seconds": found["wall"], "version": found["version"],
    }  # fmt: skip


def true_map(pair: Pair, pose: Pose, device: Device = CPU) -> Matrix:
    """Of a posed pair: as it was made or, where that is estimated, where the linear stages lead before voxels are resampled."""
    placed = posed(pair, replace(pose, resampled=False))
    return aligned(placed, device).truth if pair.estimated else placed.truth


def rows_of(pair: Pair, index: int, pose: Pose, config: Config, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """By daskreg, or by the opponents that are asked for."""
    if not args.opponents:
        yield measure(pair, index, pose, config, args.device)
        return
    shift = float(pair.moving_grid.extent.max()) / 4
    extra: dict[str, dict[str, Any]] = {"greedy_search": {"search": [SAMPLES, shift]}, "ants_search": {"step": STEP}}
    truth = true_map(pair, pose)
    for name in args.opponents.split(","):
        yield measure_opponent(pair, index, pose, name, args.opponents_home, extra[name], truth)


def condensed(search: dict[str, Any]) -> dict[str, Any]:
    """What a search says of itself, with four digits, and of its refined candidates the best three."""
    if not search:
        return {}
    scores = {name: v if name == "count" else round(v, 4) for name, v in search["scores"].items()}
    refined = [{k: v if isinstance(v, bool) else round(v, 4) for k, v in one.items()} for one in search["refined"][:KEPT]]
    return search | {"scores": scores, "refined": refined}


def add(rows: list[dict[str, Any]], out: Path) -> None:
    """Add rows to a file, in place of those of the same pose, preset, program and commit."""
    old = {_key(row): row for row in json.loads(out.read_text())} if out.exists() else {}
    lines = [json.dumps(row) for row in (old | {_key(row): row for row in rows}).values()]
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n")  # a row a line: they are many


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["seed"], row["pair"], row["pose"], *(row.get(name) for name in ("preset", "program", "commit", "device")))


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """The share of poses that are found, over rotation, shift and overlap, for each program."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(BINS), figsize=(12, 3.4), sharey=True, layout="constrained")
    for (name, (label, edges)), axes in zip(BINS.items(), panels, strict=True):
        for program in dict.fromkeys(r.get("program", "daskreg") for r in rows):
            mine = [r for r in rows if r.get("program", "daskreg") == program]
            shares = found_in_bins(mine, name, edges)
            middles = [(a + b) / 2 for a, b in pairwise(edges)]
            known = [(m, found / of, of) for m, (found, of) in zip(middles, shares, strict=True) if of]
            axes.plot(
                [m for m, _, _ in known], [100 * share for _, share, _ in known], "o-", label=f"{program} ({len(mine)} poses)"
            )
            for middle, share, of in known:
                axes.annotate(str(of), (middle, 100 * share), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axes.set_xlabel(label)
        axes.set_ylim(-5, 110)
    panels[0].set_ylabel("found, %; beside each point of how many")
    panels[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def found_in_bins(rows: list[dict[str, Any]], name: str, edges: tuple[float, ...]) -> list[tuple[int, int]]:
    """Of each interval, how many poses were found of how many; rows that lack the quantity do not count."""
    chosen = [[r for r in rows if name in r and a <= r[name] < b] for a, b in pairwise(edges)]
    return [(sum(r["found"] for r in some), len(some)) for some in chosen]


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the pairs and poses that are asked for."""
    config = PRESETS[args.preset]
    if args.search_only:
        config = config.model_copy(update={"stages": config.stages[:1]})
    least, most = map(float, args.angles.split(","))
    origin = {"commit": commit(), "machine": machine(), "device": args.device.name}
    for name in args.only.split(","):
        pair = PAIRS[name](args.data)
        for k in range(args.first, args.first + args.poses):
            pose = draw_pose(args.seed, k, pair)
            for row in rows_of(pair, k, pose, config, args) if least <= pose.angle <= most else ():
                yield {"seed": args.seed, "preset": args.preset} | row | origin


def main() -> None:
    """Measure the pairs chosen by ``--only`` at ``--poses`` poses each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--poses", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PAIRS))
    parser.add_argument("--angles", default="0,180", help="degrees: only poses that turn by these")
    parser.add_argument("--preset", default="rigid")
    parser.add_argument("--search-only", action="store_true", help="without the stages that follow the search")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "capture_range.json")
    parser.add_argument("--opponents", default="", help="run these programs instead of daskreg: greedy_search,ants_search")
    parser.add_argument("--opponents-home", type=Path, default=opponents.DEFAULT_HOME)
    parser.add_argument("--device", type=Device, default=CPU, help="cuda: images, and all that is computed of them, on the GPU")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="add the rows of these files to --out")
    parser.add_argument("--draw", type=int, metavar="SEED", help="draw the rows of --out of a seed")
    args = parser.parse_args()
    if args.join:
        add([row for file in args.join for row in json.loads(file.read_text())], args.out)
        return
    if args.draw is not None:
        rows = [r for r in json.loads(args.out.read_text()) if r["seed"] == args.draw and r.get("preset", "rigid") == "rigid"]
        draw(rows, args.out.with_suffix(".png"))
        return
    if args.data is None:
        parser.error("--data is needed: the folder with the real pairs")
    args.device.use()
    rows = []
    for row in measured(args):
        rows.append(row)
        print({key: v for key, v in row.items() if key not in ("search", "machine", "commit")}, flush=True)
        add([row], args.out)
    for name in dict.fromkeys(r["pair"] for r in rows):
        mine = [r for r in rows if r["pair"] == name]
        print(name, sum(r["found"] for r in mine), "of", len(mine), flush=True)


if __name__ == "__main__":
    main()

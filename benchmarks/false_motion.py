"""What a deformable recipe moves where nothing moved, and what it follows where something did: two modalities.

    python benchmarks/false_motion.py --data DIR

Pairs whose truth is known: a head's T1 and what its EPI's grid would show of it in another contrast, blurred and with noise (and
8 of its planes), nuclei, a solid; the same with a known smooth warp of 4 mm (25 mm wide) and of 3 mm (12 mm wide); and the real
EPI, whose truth is a rigid map, so that correcting its distortion counts as an error; and smooth textures that fill the field of
view, shifted by fractions of a voxel, in another contrast, with noise, of 10:1 voxels (``--only textures`` needs no data).
The stages of the preset after its search begin at the truth. Errors are means over what is not background, in world units, of
textures in voxels (each axis by its own): after the rigid stage, and after all of them. The constants of the preset
``multimodal`` were chosen on the pairs that are no textures. Writes ``benchmarks/results/false_motion.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import capture_range
import numpy as np
from capture_range import Array, Matrix, Pair, images_of, other_contrast, read
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from daskreg import PRESETS, Config, Grid, Region, Search
from daskreg.comm import SingleRank
from daskreg.engine.rank import Rank
from daskreg.engine.report import Outcome, Watch
from daskreg.planning import make_plan
from daskreg.transforms.linear import transform_points

Displacement = NDArray[np.float64]


def real(data: Path) -> Pair:
    """An EPI and the same head's T1."""
    pair = capture_range.epi(data)
    fixed, grid = read(data / "pycortexS1_EPI_fullhead.nii.gz")
    moving, other = read(data / "pycortexS1_T1_1mm.nii.gz")
    return replace(pair, fixed=fixed, fixed_grid=grid, moving=moving, moving_grid=other)


def seen_in_grid(pair: Pair, u: Displacement, seed: int) -> Pair:
    """The moving image in another contrast on the fixed grid, displaced by u (3, Z, Y, X) voxels, with noise."""
    blurred = gaussian_filter(other_contrast(pair.moving, 3), (0.9, 0.9, 1.6))
    to_moving = pair.moving_grid.world_to_index @ pair.truth @ pair.fixed_grid.index_to_world
    at = np.indices(pair.fixed.shape) + u
    at = np.tensordot(to_moving[:3, :3], at, 1) + to_moving[:3, 3].reshape(3, 1, 1, 1)
    noise = 0.05 * np.random.default_rng(seed).standard_normal(pair.fixed.shape)
    return replace(pair, fixed=np.asarray(map_coordinates(blurred, at, order=1) + noise, np.float32))


def smooth_warp(pair: Pair, mean: float, width: float, seed: int) -> Displacement:
    """Voxels; of a mean length and a width in world units."""
    rng, spacing = np.random.default_rng(seed), np.asarray(pair.fixed_grid.spacing)
    u = np.stack([gaussian_filter(rng.standard_normal(pair.fixed.shape), width / spacing, mode="nearest") for _ in range(3)])
    return np.asarray(u * mean / np.linalg.norm(u, axis=0).mean() / spacing.reshape(3, 1, 1, 1))


def pairs(data: Path) -> Iterator[tuple[Pair, Displacement]]:
    """Pairs and the displacement (3, Z, Y, X), voxels, that is to be found."""
    head = real(data)
    none = np.zeros((3, *head.fixed.shape))
    yield replace(head, name="epi"), none
    still = seen_in_grid(head, none, 3)
    yield replace(still, name="head"), none
    part = Region((4, 0, 0), (12, *head.fixed.shape[1:]))
    yield replace(still, name="slab", fixed=still.fixed[4:12].copy(), fixed_grid=still.fixed_grid.crop(part)), none[:, 4:12]
    for name in ("nuclei", "solid"):
        pair = capture_range.PAIRS[name](data)
        yield pair, np.zeros((3, *pair.fixed.shape))
    for name, mean, width, seed in (("wide warp", 4.0, 25.0, 7), ("narrow warp", 3.0, 12.0, 8)):
        u = smooth_warp(head, mean, width, seed)
        yield replace(seen_in_grid(head, u, seed), name=name), u


SHIFT = (2.3, 3.0, -2.5)  # voxels: a fraction, none, and a half


def waves(shape: tuple[int, ...], width: tuple[float, ...], shift: tuple[float, ...]) -> Array:
    """A texture that is known between its voxels: 200 waves, as of noise smoothed by ``width`` voxels, shifted by voxels."""
    rng = np.random.default_rng(11)
    frequencies, phases = rng.standard_normal((200, 3)) / np.asarray(width), rng.uniform(0, 2 * np.pi, 200)
    x = np.indices(shape).reshape(3, -1).T - np.asarray(shift)
    return np.asarray(np.cos(x @ frequencies.T + phases).sum(1).reshape(shape), np.float32)


def squared(image: Array) -> Array:
    """From 0 to 1."""
    return np.square((image - image.min()) / np.ptp(image))


def textures() -> Iterator[tuple[Pair, Displacement]]:
    """An inverted and a squared one, each without and with 2 % noise, of equal voxels and of 10:1."""
    for shape, width, spacing in (
        ((48, 48, 48), (4.0, 4.0, 4.0), (1.0, 1.0, 1.0)),
        ((16, 64, 64), (2.5, 8.0, 8.0), (10.0, 1.0, 1.0)),
    ):
        grid, truth = Grid(shape, spacing), np.eye(4)
        truth[:3, 3] = np.asarray(SHIFT) * spacing
        fixed, moving = waves(shape, width, (0.0, 0.0, 0.0)), waves(shape, width, SHIFT)
        for contrast, seen in (("inverted", -moving), ("squared", squared(moving))):
            for noise in (0.0, 0.02):
                rng = np.random.default_rng(5)
                pair = [i + np.float32(noise * np.ptp(i)) * rng.standard_normal(shape, np.float32) for i in (fixed, seen)]
                name = f"texture {'10:1 ' if spacing[0] > 1 else ''}{contrast}{', noise' if noise else ''}"
                yield Pair(name, pair[0], grid, pair[1], grid, truth), np.zeros((3, *shape))


def run(pair: Pair, config: Config, start: Matrix) -> Outcome:
    """The stages on one rank."""
    plan = make_plan(pair.fixed_grid, pair.moving_grid, config)
    return Rank(plan, images_of(pair, config), start, SingleRank(), Watch()).run()


def error(pair: Pair, outcome: Outcome, truth: Displacement) -> float:
    """Mean distance to the truth, world units; of a texture voxels, each axis by its own."""
    texture = pair.name.startswith("texture")
    at = np.argwhere(pair.fixed > (-np.inf if texture else np.percentile(pair.fixed, 99) * 0.15))[::17]
    where = (slice(None), *at.T)
    u: Any = outcome.displacement
    found = at if u is None else at + np.asarray(u.array)[where].T
    ends = [pair.fixed_grid.to_world(x) for x in (found, at + truth[where].T)]
    apart = transform_points(outcome.affine, ends[0]) - transform_points(pair.truth, ends[1])
    if texture:
        apart = apart / pair.fixed_grid.spacing
    return round(float(np.linalg.norm(apart, axis=1).mean()), 3)


def main() -> None:
    """All pairs by one preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", choices=("pairs", "textures"))
    parser.add_argument("--preset", default="multimodal")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "false_motion.json")
    args = parser.parse_args()
    config = PRESETS[args.preset]
    stages = tuple(s for s in config.stages if not isinstance(s, Search))
    kept = json.loads(args.out.read_text()) if args.only and args.out.exists() else []
    rows = [r for r in kept if r["pair"].startswith("texture") != (args.only == "textures")]
    chosen = textures() if args.only == "textures" else pairs(args.data) if args.only else chain(pairs(args.data), textures())
    for pair, truth in chosen:
        found = [
            error(pair, run(pair, config.model_copy(update={"stages": some}), pair.truth), truth) for some in (stages[:1], stages)
        ]
        rows.append(
            {"pair": pair.name, "preset": args.preset, "rigid": found[0], "all stages": found[1], "unit": pair.fixed_grid.unit}
        )
        print(rows[-1], flush=True)
    args.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()

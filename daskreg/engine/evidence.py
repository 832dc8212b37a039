"""Evidence for and against a result, on a coarse level: how its local correlation stands against that elsewhere.

Everything is counted over the textured part of the fixed image: where its local variance is at least TEXTURE of the mean.
Correlations are squared, so that a contrast that is turned around, as between two modalities, counts as much.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.transform import Rotation

from daskreg.engine.coarse_pair import CoarsePair
from daskreg.engine.drift import DRIFT, Drift, find_drift
from daskreg.engine.edge_rivals import EdgeRivals, edge_rivals
from daskreg.engine.information import information_of_maps
from daskreg.engine.rivals import best_rival, merit
from daskreg.transforms.linear import linear_about
from daskreg.transforms.rotations import rotation_grid

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]
WINDOW = 5  # voxels along an edge of the window of a local correlation
NEIGHBOURHOOD = 7  # over which local correlations are averaged before places are compared
STEP = 2  # voxels between places that are compared
RARE = 0.1  # part of the other poses that may be as good at a place: outlines of round objects match in any pose
TEXTURE = 0.1  # of the mean local variance: less is noise or empty
COVERED = 0.5  # part of a window that must be inside both images
SMOOTH = 5.0  # voxels, Gaussian sigma: a displacement that fits noise is gone after it, a real one is not
TOO_STRETCHED = 2.0  # from which on it is wrong, however it matches
STRETCHED = 1.001  # from which on the affine map has a scale of its own, which may drift too
UNSURE = 0.35, 0.75  # share of the pose: wrong poses were below the second, right ones above the first
SURE = 0.8  # share of the pose from which on edges are not compared, which takes longer than all the rest
CLEAR_EDGES = 1.08  # times the best other pose's agreement: of the poses tuned on, right ones had 1.11 and more, wrong ones 1.03
LEAST_EDGES = 0.15  # agreement: unrelated images have as much by chance
POSES = 8  # of the grid of rotations, beside the right angles


@dataclass(frozen=True)
class Evidence:
    """What was found; shares are of the textured part that is inside both images, similarities mean squared correlations.

    in_place: share whose local correlation is higher here than at any place STEP voxels away and in nearly all other poses;
    pose: the same with a smooth displacement or, where that leaves a doubt, without one, if it is larger: a displacement that
    was fitted to a wrong pose raises the first alone; chance: share that correlates no better than shuffled blocks; similarity:
    of the result; pose_chance, pose_similarity: with the displacement of ``pose``; random, best_random, shuffled: similarities,
    the median and the largest of other poses, and the mean of shuffled blocks; rival: the best of other poses after a
    refinement, as a part of what is found here, 0 where the share of the pose or edges leave no doubt; edges, edge_rival:
    agreement of edges of the pose and of the best other one that a small search finds, 0 where the share leaves no doubt or
    another pose is as alike; overlap: part of the smaller image; textured: part of the fixed level; windows: independent ones
    in the textured part that both images cover; stretch: largest factor, or one over the smallest, by which the affine map
    changes a length beyond the initial map; shape: of the level; drift: voxels of the level, in the mean, that a refinement by
    edges moves the result; drift_edges, drifted_edges: agreement of smoothed edges before and after that; affine_information,
    information: mutual information (nats) by the affine map alone and with the displacement, 0 without one
    """

    in_place: float
    pose: float
    chance: float
    pose_chance: float
    similarity: float
    pose_similarity: float
    random: float
    best_random: float
    shuffled: float
    rival: float
    overlap: float
    textured: float
    windows: float
    stretch: float
    shape: tuple[int, int, int]
    edges: float = 0.0
    edge_rival: float = 0.0
    drift: float = 0.0
    drift_edges: float = 0.0
    drifted_edges: float = 0.0
    affine_information: float = 0.0
    information: float = 0.0

    @property
    def edges_are_clear(self) -> bool:
        """Whether no other pose's edges agree nearly as well."""
        return self.edges >= LEAST_EDGES and self.edges > CLEAR_EDGES * self.edge_rival

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


class SquaredCorrelation:
    """Of the fixed level with images on its grid."""

    def __init__(self, pair: CoarsePair) -> None:
        self.fixed = pair.fixed.voxels
        mask = pair.fixed.weight
        self.mask = np.ones(self.fixed.shape, np.float32) if mask is None else mask
        self.full = self._mean(np.ones(self.fixed.shape, np.float32))
        self.floor = TEXTURE * _variance(self.fixed, self.mask), TEXTURE * _variance(pair.moving.voxels, pair.moving.weight)

    def __call__(self, moved: Array, weight: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Squared local correlation, and where it counts: windows with texture that both images cover."""
        w, mean, f, m = weight * self.mask, self._mean, self.fixed, moved
        n = mean(w)
        safe = np.maximum(n, np.float32(1e-6))
        wf, wm = w * f, w * m
        f0, m0 = mean(wf) / safe, mean(wm) / safe
        ff, mm, fm = mean(wf * f) / safe - f0 * f0, mean(wm * m) / safe - m0 * m0, mean(wf * m) / safe - f0 * m0
        squared = fm * fm / (np.maximum(ff, self.floor[0]) * np.maximum(mm, self.floor[1]))
        counts = (w > 0.5) & (n >= COVERED * self.full) & (ff > self.floor[0])
        return np.minimum(squared, np.float32(1)), counts

    def neighbourhood(self, values: Array) -> Array:
        """Means over NEIGHBOURHOOD."""
        return _box(values, NEIGHBOURHOOD)

    def windows(self, counts: NDArray[np.bool_]) -> float:
        """How many neighbourhoods, side by side, have as many voxels."""
        return float(counts.sum()) / float(np.prod([min(NEIGHBOURHOOD, n) for n in counts.shape]))

    def _mean(self, values: Array) -> Array:
        return _box(values, WINDOW)


def _box(values: Array, edge: int) -> Array:
    """Sums over a box divided by its size, 0 beyond the faces; an axis of one voxel has no neighbours."""
    result: Array = uniform_filter(values, [edge if n > 1 else 1 for n in values.shape], mode="constant")
    return result


def _variance(voxels: Array, mask: Array | None) -> np.float32:
    """The mean of the local variance."""
    w = np.ones(voxels.shape, np.float32) if mask is None else mask
    n = np.maximum(_box(w, WINDOW), np.float32(1e-6))
    mean = _box(w * voxels, WINDOW) / n
    local = np.maximum(_box(w * voxels * voxels, WINDOW) / n - mean * mean, 0) * w
    return np.float32(max(float(local.sum(dtype=np.float64) / max(float(w.sum(dtype=np.float64)), 1e-6)), 1e-12))


@dataclass(frozen=True)
class _Places:
    """The local correlation at the result, where it counts, and where it is higher than elsewhere."""

    squared: Array
    counts: NDArray[np.bool_]
    best: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """In place, of what counts."""
        return _share(self.best, self.counts)


@dataclass(frozen=True)
class _Others:
    """Other poses: similarities, local correlations, world maps (the most alike first), and what they are turned about."""

    similarities: list[float]
    fields: list[Array]
    worlds: list[Matrix]
    middle: Matrix


def _share(part: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    return float((part & of).sum()) / max(int(of.sum()), 1)


def _compare_places(pair: CoarsePair, correlation: SquaredCorrelation, u: Array | None, elsewhere: list[Array]) -> _Places:
    """With moved shifted by STEP along every axis, edge and diagonal, as far as the level has voxels there, and other poses."""
    moved, weight = pair.sample(pair.world, u, rim=STEP)
    steps = [(-STEP, 0, STEP) if n > 2 * STEP else (0,) for n in pair.fixed.voxels.shape]
    here = _shifted(moved, weight, (0, 0, 0))
    squared, counts = correlation(*here)
    value = correlation.neighbourhood(squared * counts)
    best = np.ones(value.shape, bool)
    for shift in itertools.product(*steps):
        if any(shift):
            other, there = correlation(*_shifted(moved, weight, shift))
            best &= correlation.neighbourhood(other * there) < value
    higher = sum(((field >= value).astype(np.int16) for field in elsewhere), np.zeros(value.shape, np.int16))
    return _Places(squared, counts, best & (higher <= RARE * len(elsewhere)))


def _shifted(moved: Array, weight: Array, shift: tuple[int, ...]) -> tuple[Array, Array]:
    """What is ``shift`` voxels further in arrays with a rim of STEP."""
    at = tuple(slice(STEP + s, n - STEP + s) for s, n in zip(shift, moved.shape, strict=True))
    return moved[at], weight[at]


def gather_evidence(pair: CoarsePair, start: Matrix) -> tuple[Evidence, NDArray[np.uint8]]:
    """The evidence, and a map (Z, Y, X): 0 nothing to compare, 1 in place, 2 not in place or no better than chance.

    start: the initial world map
    """
    correlation, u = SquaredCorrelation(pair), pair.displacement
    others = _other_poses(pair, correlation)
    random, elsewhere = others.similarities, others.fields
    places = _compare_places(pair, correlation, u, elsewhere)
    counts, squared = places.counts, places.squared
    pose = places
    if u is not None:
        pose = _compare_places(pair, correlation, _smoothed(u), elsewhere)
        if pose.share < SURE:
            pose = max(_compare_places(pair, correlation, None, elsewhere), pose, key=lambda p: p.share)
    shuffled = _shuffled(pair, correlation, u)
    median = np.float32(np.median(np.concatenate(shuffled))) if any(s.size for s in shuffled) else np.float32(0)
    by_chance = squared <= median
    alike = _mean_of(pose.squared, pose.counts)
    unsure = pose.share < SURE and alike > max(random, default=0.0) and 1 not in pair.fixed.voxels.shape
    edges = edge_rivals(pair, start) if unsure else EdgeRivals()
    stretch = _stretch(pair.world, start)
    # a map that shrinks an image to nothing would be refined on a lattice as fine as that
    drift = _drift(pair, u, counts, scaled=stretch > STRETCHED) if stretch <= TOO_STRETCHED else Drift()
    affine_information, information = information_of_maps(pair)
    evidence = Evidence(
        in_place=places.share,
        pose=pose.share,
        chance=min(1.0, 2 * _share(by_chance, counts)),
        pose_chance=min(1.0, 2 * _share(pose.squared <= median, pose.counts)),
        similarity=_mean_of(squared, counts),
        pose_similarity=alike,
        random=float(np.median(random)) if random else 0.0,
        best_random=max(random, default=0.0),
        shuffled=float(np.mean([s.mean(dtype=np.float64) for s in shuffled if s.size] or [0.0])),
        rival=0.0,
        overlap=_overlap(pair),
        textured=float(counts.mean()),
        windows=correlation.windows(counts),
        stretch=stretch,
        shape=pair.fixed.voxels.shape,
        edges=edges.own,
        edge_rival=edges.rival,
        drift=drift.distance,
        drift_edges=drift.own,
        drifted_edges=drift.refined,
        affine_information=affine_information,
        information=information,
    )
    if not evidence.edges_are_clear:
        evidence = replace(evidence, rival=_rival(pair, correlation, others, pose))
    return evidence, np.where(counts, np.where(places.best & ~by_chance, 1, 2), 0).astype(np.uint8)


def _drift(pair: CoarsePair, u: Array | None, counts: NDArray[np.bool_], *, scaled: bool) -> Drift:
    """The least, with a displacement, of those with a smooth one and without it: a fitted one holds a wrong pose in place."""
    found = find_drift(pair, None if u is None else _smoothed(u), counts, scaled=scaled)
    if u is None or found.distance <= DRIFT:
        return found
    return min(find_drift(pair, None, counts, scaled=scaled), found, key=lambda d: d.distance)


def _mean_of(values: Array, counts: NDArray[np.bool_]) -> float:
    return float(values[counts].mean(dtype=np.float64)) if counts.any() else 0.0


def _smoothed(u: Array) -> Array:
    return np.stack([gaussian_filter(c, SMOOTH, mode="nearest") for c in u])


def _shuffled(pair: CoarsePair, correlation: SquaredCorrelation, u: Array | None) -> list[Array]:
    """Local correlations with the moved image's blocks exchanged: its halves, along all axes."""
    moved, weight = pair.sample(pair.world, u)
    found = []
    for halves in itertools.product(*((0, n // 2) if n > 1 else (0,) for n in moved.shape)):
        if any(halves):
            squared, counts = correlation(np.roll(moved, halves, (0, 1, 2)), np.roll(weight, halves, (0, 1, 2)))
            found.append(squared[counts])
    return found


def _other_poses(pair: CoarsePair, correlation: SquaredCorrelation) -> _Others:
    """Similarities and local correlations at other poses: rotations about the middle of what both images cover (of a single
    plane: within it), as far as they keep half of the overlap.
    """
    grid, (_, weight) = pair.fixed.grid, pair.sample(pair.world)
    least, found, fields = COVERED * float(weight.mean()), [], []
    starts: list[tuple[float, Matrix]] = []
    middle = grid.to_world(np.argwhere(weight > 0).mean(axis=0)) if least else grid.center
    for rotation in _rotations(pair):
        world = pair.world @ linear_about(middle, rotation)
        moved, there = pair.sample(world)
        if float(there.mean()) >= least:
            squared, counts = correlation(moved, there)
            found.append(_mean_of(squared, counts))
            fields.append(correlation.neighbourhood(squared * counts))
            starts.append((merit(squared, counts), world))
    return _Others(found, fields, [world for _, world in sorted(starts, key=lambda s: -s[0])], middle)


def _rival(pair: CoarsePair, correlation: SquaredCorrelation, others: _Others, pose: _Places) -> float:
    """Only where the share leaves a doubt that this can settle, as it takes longer than all the rest."""
    if not UNSURE[0] <= pose.share < UNSURE[1] or 1 in pair.fixed.voxels.shape:
        return 0.0
    found = best_rival(pair, others.worlds, others.middle, correlation, SquaredCorrelation)
    return found / max(merit(pose.squared, pose.counts), 1e-6)


def _rotations(pair: CoarsePair) -> list[Matrix]:
    flat = [a for a, n in enumerate(pair.fixed.voxels.shape) if n == 1]
    if not flat:
        grid = rotation_grid()  # right angles first: upside down is where a wrong pose looks most alike
        return grid[1:24] + grid[24 :: len(grid) // POSES][:POSES]
    normal = np.asarray(pair.fixed.grid.direction)[:, flat[0]]
    angles = np.arange(1, 24) * np.pi / 12
    return [np.asarray(Rotation.from_rotvec(normal * a).as_matrix()) for a in angles]


def _overlap(pair: CoarsePair) -> float:
    """Part of the smaller domain that the other covers."""
    _, weight = pair.sample(pair.world, pair.displacement)
    scale = abs(float(np.linalg.det(pair.world[:3, :3])))
    sizes = [
        float(np.prod(i.grid.extent)) * (1.0 if i.weight is None else max(float((i.weight > 0.5).mean()), 1e-6))
        for i in (pair.fixed, pair.moving)
    ]
    seen = weight > 0.5 if pair.fixed.weight is None else (weight > 0.5) & (pair.fixed.weight > 0.5)
    both = float(seen.mean()) * float(np.prod(pair.fixed.grid.extent)) * scale
    return min(1.0, both / max(min(sizes[0] * scale, sizes[1]), 1e-30))


def _stretch(world: Matrix, start: Matrix) -> float:
    values = np.linalg.svd(world[:3, :3] @ np.linalg.inv(start[:3, :3]), compute_uv=False)
    return float(max(values[0], 1 / max(values[-1], 1e-12)))

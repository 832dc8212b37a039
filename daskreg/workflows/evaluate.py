"""``daskreg evaluate``: the accuracy of a transform by labels and landmarks, and its Jacobian."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.arguments import checked_arguments
from daskreg.deferred import DeferredModule
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ConfigError, VoxelError, counted
from daskreg.grid import Grid
from daskreg.html import Printable
from daskreg.lazy.blocks import block_of
from daskreg.lazy.load import TransformLike, load_transform, path_of, run_in
from daskreg.lazy.resample import require_not_exchanged, resampled, warn_of_other_grid
from daskreg.lazy.transform import Transform
from daskreg.reporting.tasks import with_progress
from daskreg.storage import RunStore, Volume
from daskreg.storage.formats.run import Run
from daskreg.storage.images import ImageSource, open_on
from daskreg.transforms.jacobian import JacobianStatistics
from daskreg.workflows.landmarks import Landmarks, read_landmarks
from daskreg.workflows.points import tell_of_outside

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.engine import verdict as verdicts
    from daskreg.engine.verdict import Verdict
else:
    da = DeferredModule("dask.array")
    verdicts = DeferredModule("daskreg.engine.verdict")

log = logging.getLogger("daskreg")
FEW = 1 << 16  # labels below this are counted in a table


@dataclass(frozen=True)
class Overlap:
    """One label: Dice before and after (nan where it is in neither image), volumes in the fixed image's unit cubed.

    missing: "fixed", "moving" or "both" images that do not have it, "" when both do.
    """

    before: float
    after: float
    fixed_volume: float
    moved_volume: float
    missing: str = ""


@dataclass(frozen=True)
class Distances:
    """Target registration errors, in the fixed image's unit of length."""

    mean: float
    median: float
    p95: float
    largest: float

    @classmethod
    def of(cls, d: NDArray[np.float64]) -> Distances:
        """Of distances (N,), N at least 1."""
        return cls(float(d.mean()), float(np.median(d)), float(np.percentile(d, 95)), float(d.max()))


@dataclass(frozen=True, repr=False)
class Evaluation(Printable):
    """Overlap, distances and Jacobian of a transform; before: by the headers alone, after: through the transform.

    jacobian_statistics: of the displacement, without the affine map; None where there is one, and no grid to measure it on;
    labels: by identity, empty without labels;  errors: distances before and after of ``landmarks`` pairs, None without any;
    verdict: that a run has recorded, None for other transforms and runs of earlier versions;
    warnings: why labels or landmarks may not be those of the images; they were logged too
    """

    jacobian_statistics: JacobianStatistics | None
    unit: str | None
    labels: Mapping[int, Overlap] = field(default_factory=dict)
    errors: tuple[Distances, Distances] | None = None
    landmarks: int = 0
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()

    @property
    def dice(self) -> tuple[float, float]:
        """Mean Dice before and after, over the labels that at least one image has; nan without any."""
        present = [o for o in self.labels.values() if o.missing != "both"]
        if not present:
            return float("nan"), float("nan")
        return float(np.mean([o.before for o in present])), float(np.mean([o.after for o in present]))

    def lines(self) -> list[str]:
        """Human-readable summary."""
        unit, text = self.unit or "units", [_folds(self.jacobian_statistics)]
        if self.labels:
            text.append(f"{'label':>8} {'before':>7} {'after':>7} {'fixed volume':>14} {'moved volume':>14}  ({unit}^3)")
            text += [_line(n, o) for n, o in self.labels.items()]
            text.append(f"{'mean':>8} {self.dice[0]:7.3f} {self.dice[1]:7.3f}")
        if self.errors:
            text.append(f"{counted(self.landmarks, 'landmark')}, distance in {unit}: mean, median, 95th percentile, largest")
            text += [_distances("before", self.errors[0]), _distances("after", self.errors[1])]
        text += [f"warning: {line}" for line in self.warnings]  # last: a table of labels may be long
        return text if self.verdict is None else [self.verdict.line(), *text]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        tree: dict[str, Any] = {"unit": self.unit, "jacobian": None}
        if self.jacobian_statistics is not None:
            tree["jacobian"] = asdict(self.jacobian_statistics)
        if self.verdict is not None:
            tree["verdict"] = {k: v for k, v in self.verdict.as_dict().items() if k != "matched"}
        if self.labels:
            labels = {str(n): {k: _plain(v) for k, v in asdict(o).items()} for n, o in self.labels.items()}
            tree["dice"] = {"before": _plain(self.dice[0]), "after": _plain(self.dice[1]), "labels": labels}
        if self.errors:
            tree["landmarks"] = {"count": self.landmarks, "before": asdict(self.errors[0]), "after": asdict(self.errors[1])}
        if self.warnings:
            tree["warnings"] = list(self.warnings)
        return tree


@renamed_arguments(run="transform")
@checked_arguments()
@with_progress("evaluating")
def evaluate(
    transform: TransformLike,
    *,
    fixed_labels: ImageSource | Volume | None = None,
    moving_labels: ImageSource | Volume | None = None,
    landmarks: Landmarks | None = None,
    landmarks_space: str = "lps",
    labels: Sequence[int] | None = None,
) -> Evaluation:
    """Measure a transform; labels and landmarks as far as they are given, and folds.

    Folds are counted on the grid of the fixed image; of a transform that does not name it, on that of the labels, or not at all.

    fixed_labels, moving_labels: label images, each of any grid; an array is on that of its image, whose shape it has to have;
    labels: those to look at (all but 0 by default);  landmarks: pairs in the unit of the fixed image: a CSV table, see
    ``read_landmarks``, or a pair of arrays (N, 3), z, y, x, of fixed and moving;  landmarks_space: lps or ras.
    Raises InputError in all its forms.
    """
    require_both_labels(fixed_labels, moving_labels)
    phi = load_transform(transform)
    pairs = None if landmarks is None else read_landmarks(landmarks, landmarks_space)
    errors = None if pairs is None else target_errors(phi, pairs.fixed, pairs.moving)
    name = str(landmarks) if isinstance(landmarks, str | Path) else "landmarks"
    warnings = [] if errors is None else _warn_of_larger_distances(errors, phi, name)
    if pairs is not None:
        for image, found in (("fixed", pairs.fixed), ("moving", pairs.moving)):
            warnings += tell_of_outside(phi, found, image, name, option="--landmarks-space", lines=pairs.lines)
    overlaps: Mapping[int, Overlap] = {}
    grid = phi.fixed
    if fixed_labels is not None and moving_labels is not None:
        fixed = open_on(fixed_labels, phi.fixed, "fixed", phi.moving)
        moving = open_on(moving_labels, phi.moving, "moving", phi.fixed)
        require_not_exchanged(fixed, moving, phi.grids)
        warnings += warn_of_other_grid(fixed, "fixed", phi.grids) + warn_of_other_grid(moving, "moving", phi.grids)
        overlaps, grid = compare_labels(phi, fixed, moving, labels), grid or fixed.grid
    count, verdict = 0 if pairs is None else len(pairs.fixed), verdict_of(transform)
    return Evaluation(_statistics(phi, grid), _unit(phi), overlaps, errors, count, verdict, tuple(warnings))


def _unit(transform: Transform) -> str | None:
    """Of the fixed image, or of the transform where it does not name that."""
    return transform.unit if transform.fixed is None else transform.fixed.unit


def _statistics(transform: Transform, grid: Grid | None) -> JacobianStatistics | None:
    """Of the displacement on a grid; None where there is a displacement and no grid."""
    if transform.is_affine:
        return JacobianStatistics()
    return None if grid is None else replace(transform, fixed=grid).jacobian_statistics()


def _warn_of_larger_distances(errors: tuple[Distances, Distances], transform: Transform, name: str) -> list[str]:
    """Logs a warning, and returns it, of landmarks that the transform takes further apart by more than a voxel."""
    before, after = (distances.mean for distances in errors)
    voxel = 0.0 if transform.fixed is None else max(transform.fixed.to_unit(transform.unit).spacing)
    if after <= before + voxel:
        return []
    found = (
        f"{name}: the landmarks are {after:.4g} {transform.unit or 'units'} apart after the registration and {before:.4g} before "
        "it: are the columns of the fixed and of the moving image exchanged, or are they RAS (--landmarks-space ras)?"
    )
    log.warning("%s", found)
    return [found]


def require_both_labels(fixed: object, moving: object) -> None:
    """Raises ConfigError where labels of one image alone were given."""
    if (fixed is None) != (moving is None):
        have, lack = ("fixed", "moving") if moving is None else ("moving", "fixed")
        raise ConfigError(f"labels of the {have} image were given, those of the {lack} image were not; Dice needs both.")


def verdict_of(transform: TransformLike) -> Verdict | None:
    """What a run has recorded; None for anything else."""
    run, path = run_in(transform), path_of(transform)
    if isinstance(run, RunStore):
        return verdicts.Verdict.of_record(run.provenance.get("verdict"))
    return verdict_of(RunStore.open(path)) if path is not None and Run().sniff(str(path)) else None


def target_errors(transform: Transform, fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> tuple[Distances, Distances]:
    """Distances before and after between phi(fixed) and moving points, (N, 3) each."""
    before = np.linalg.norm(fixed - moving, axis=1)
    return Distances.of(before), Distances.of(np.linalg.norm(transform.points(fixed) - moving, axis=1))


def compare_labels(
    transform: Transform, fixed: Volume, moving: Volume, labels: Sequence[int] | None = None
) -> dict[int, Overlap]:
    """Dice of each label on the grid of ``fixed``, counted block by block."""
    fixed, moving = whole_numbers(fixed), whole_numbers(moving)
    grid, block = fixed.grid, block_of(fixed.grid.shape)
    before, after = (resampled(moving, grid, links, transform.unit, "label") for links in ((), transform.links))
    f, b, a, both_b, both_a = _counted(_count_pairs, fixed.data.rechunk(block), before, after)
    (m,) = _counted(_count_one, moving.data)
    names = sorted((set(f) | set(m)) - {0}) if labels is None else list(dict.fromkeys(labels))
    size = _voxel_volume(grid.to_unit(_unit(transform)))
    return {
        n: Overlap(_dice(both_b[n], f[n], b[n]), _dice(both_a[n], f[n], a[n]), f[n] * size, a[n] * size, _missing(n in f, n in m))
        if n in f or n in m
        else Overlap(float("nan"), float("nan"), 0.0, 0.0, "both")
        for n in names
    }


def whole_numbers(volume: Volume) -> Volume:
    """Labels as integers: many tools write them as floats. Raises VoxelError, when read, for what is no whole number."""
    if volume.dtype.kind == "b":
        return replace(volume, data=volume.data.astype(np.uint8))
    if volume.dtype.kind != "f":
        return volume
    data = da.map_blocks(_whole, volume.data, volume.name, dtype=np.int64, meta=np.empty((0, 0, 0), np.int64))
    return replace(volume, data=data)


def _whole(voxels: NDArray[Any], name: str) -> NDArray[np.int64]:
    near = np.rint(voxels)
    wrong = ~(np.abs(voxels - near) <= 1e-3)
    if wrong.any():
        raise VoxelError(f"{name} holds {voxels[wrong][0]:g}; labels are whole numbers: give a label image.")
    return np.asarray(near, np.int64)


def _counted(count: Any, *images: da.Array) -> tuple[Counter[int], ...]:
    """Counts added up over the blocks of images that are cut alike."""
    meta = np.empty((0, 0, 0), object)
    parts = da.map_blocks(count, *images, dtype=object, chunks=tuple((1,) * n for n in images[0].numblocks), meta=meta)
    tables = parts.compute().ravel()
    return tuple(reduce(add, column, Counter()) for column in zip(*tables))


def _count_pairs(fixed: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Counts of fixed, before, after, and of where each of these agrees with fixed."""
    return _boxed(*(_count(v) for v in (fixed, before, after, fixed[fixed == before], fixed[fixed == after])))


def _count_one(labels: NDArray[Any]) -> NDArray[Any]:
    return _boxed(_count(labels))


def _boxed(*counts: Counter[int]) -> NDArray[Any]:
    box = np.empty((1, 1, 1), object)
    box[0, 0, 0] = counts
    return box


def _count(labels: NDArray[Any]) -> Counter[int]:
    """How often each label occurs."""
    if labels.size and int(labels.min()) >= 0 and int(labels.max()) < FEW:
        counts = np.bincount(labels.ravel())
        return Counter({int(n): int(counts[n]) for n in np.flatnonzero(counts)})
    return Counter(dict(zip(*(a.tolist() for a in np.unique(labels, return_counts=True)))))


def _dice(common: int, one: int, other: int) -> float:
    return 2 * common / (one + other) if one + other else 0.0


def _missing(in_fixed: bool, in_moving: bool) -> str:
    return "" if in_fixed and in_moving else "moving" if in_fixed else "fixed"


def _voxel_volume(grid: Grid) -> float:
    return float(abs(np.linalg.det(grid.index_to_world[:3, :3])))


def _folds(statistics: JacobianStatistics | None) -> str:
    if statistics is None:
        return "folds are not measured: the transform names no fixed grid, on which its displacement would be"
    span = f"{statistics.smallest:.3f} to {statistics.largest:.3f}, mean {statistics.mean:.3f}"
    return f"folded {statistics.folded_percent:.4g} % of voxels, Jacobian of the displacement {span}"


def _line(label: int, o: Overlap) -> str:
    note = {"": "", "both": "  in neither image"}.get(o.missing, f"  missing in the {o.missing} image")
    return f"{label:>8} {o.before:7.3f} {o.after:7.3f} {o.fixed_volume:14.6g} {o.moved_volume:14.6g}{note}"


def _distances(word: str, d: Distances) -> str:
    return f"{word:>8} {d.mean:.4g} {d.median:.4g} {d.p95:.4g} {d.largest:.4g}"


def _plain(value: Any) -> Any:
    """JSON knows no nan."""
    return None if isinstance(value, float) and not np.isfinite(value) else value

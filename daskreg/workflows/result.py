"""What a registration returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import DaskregError
from daskreg.html import pictures, preformatted, table
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, Volume
from daskreg.storage.runs.layout import DISPLACEMENT

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.engine import verdict as verdicts
    from daskreg.engine.verdict import Verdict
else:
    verdicts = DeferredModule("daskreg.engine.verdict")


class Report(TypedDict, total=False):
    """The record of a run, as ``RUN.zarr`` keeps it.

    config: the stages and their parameters, as ``Config.parse`` reads them;  inputs: name, format, dtype and grid of the fixed
    and the moving image;  versions: of daskreg, its dependencies and Python
    levels: stage, scale, shape, losses, seconds and reason to stop of each level, in order
    metrics: correlation (ncc) and mutual information (mi) before and after, and statistics of the Jacobian
    verdict: see ``Verdict``; runs of earlier versions have none
    seconds: of each phase, of the slowest rank, of the earlier parts of a run that was resumed, up to their last checkpoints, and
    total;  machine, ranks: computer, peak bytes and bytes sent, of rank 0 and of each rank;  blocks: first and last + 1 plane of
    each rank;  projected_bytes: what the plan expected a rank to need
    fill: value of the moved image outside of the moving one;  left_out: voxels of fixed and moving that are stored background
    masked: voxels of fixed and moving that their masks leave, None without a mask
    decoded: how often a voxel of fixed and moving was decoded, on all ranks together; empty unless they stayed in their files
    tried: presets that were tried on coarse images, the one that was taken first; absent without any
    changed_inputs: inputs that changed while they were read, and how; absent without any
    """

    config: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    versions: dict[str, str]
    levels: list[dict[str, Any]]
    metrics: dict[str, Any]
    verdict: dict[str, Any]
    seconds: dict[str, float]
    machine: dict[str, Any]
    ranks: list[dict[str, Any]]
    blocks: list[list[int]]
    projected_bytes: int
    fill: float | str
    left_out: list[int]
    masked: list[int | None]
    decoded: list[float]
    tried: list[dict[str, Any]]
    changed_inputs: dict[str, str]


@dataclass(frozen=True)
class Result:
    """A finished run: the moved image and the transform, lazily, and the record of the run."""

    store: RunStore

    def __repr__(self) -> str:
        return f"Result({self.path!r}, {', '.join(f'{k} {v}' for k, v in _numbers(self.report, self.verdict))})"

    def _repr_html_(self) -> str:
        return _card(self)

    @property
    def path(self) -> str:
        """Where the run is stored."""
        return self.store.path

    @property
    def moved(self) -> Volume:
        """The moving image on the fixed grid."""
        return self.store.read_image("moved")

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) world map from fixed to moving points, order z, y, x, 1."""
        return self.store.affine

    @property
    def displacement(self) -> da.Array | None:
        """(3, Z, Y, X) world units, components z, y, x, applied before the affine map; None without a deformable stage."""
        return self.store.displacement() if self.store.has(DISPLACEMENT) else None

    @property
    def transform(self) -> Transform:
        """Affine map and displacement as one transform, fixed to moving points, lazily."""
        return load_transform(self.store)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the result can be trusted, and why; None for a run of a version that gave none."""
        return verdicts.Verdict.of_record(self.store.provenance.get("verdict"))

    @property
    def report(self) -> Report:
        """Configuration, versions, inputs, losses and times."""
        return cast(Report, Record(self.store.provenance))


class Record(dict[str, Any]):
    """The ``Report`` of a run as a notebook shows it: its numbers and times."""

    def _repr_html_(self) -> str:
        from daskreg.workflows.progress import lines_of

        report = cast(Report, self)
        numbers = _numbers(report, verdicts.Verdict.of_record(report.get("verdict")))
        return table("Report", numbers) + preformatted("", "\n".join(lines_of(report)))


def _numbers(report: Report, verdict: Verdict | None) -> list[tuple[str, str]]:
    """What matters of a run, shortly."""
    before, after = report["metrics"]["before"], report["metrics"]["after"]
    rows: list[tuple[str, str]] = [] if verdict is None else [("verdict", verdict.status)]
    start = " (before: affine part of the start)" if "before_by" in report["metrics"] else ""
    rows.append(("correlation", f"{before['ncc']:.3f} -> {after['ncc']:.3f}{start}"))
    if "jacobian" in report["metrics"]:
        rows.append(("folded", f"{report['metrics']['jacobian']['folded_percent']:.4g} %"))
    return [*rows, ("seconds", f"{report['seconds']['total']:.1f}")]


def _card(result: Result) -> str:
    """The numbers, three views of the moved image, over the fixed one where that is still there, and where all of it is."""
    from daskreg.reporting.images import thumbnails

    try:
        shown = pictures(thumbnails(result.store, result.store.provenance))
    except (DaskregError, OSError) as error:
        shown = f"<div>no pictures: {escape(str(error))}</div>"
    rows = _numbers(result.report, result.verdict)
    rows += [] if result.verdict is None else [("because", "; ".join(result.verdict.reasons))]
    rows += [("fixed grid", result.store.fixed_grid.summary()), ("stored in", result.path)]
    more = f"<div>a page with all of it: <code>daskreg.report({escape(repr(result.path))}, 'report.html')</code></div>"
    return table("Result", rows, shown + more)


def merge_reports(ranks: Sequence[dict[str, Any]]) -> Report:
    """One report from those of all ranks: levels and metrics of rank 0, the longest times, the largest peak."""
    first, machines = ranks[0], [r["machine"] for r in ranks]
    blocks: Report = first["plan"]
    return {
        **blocks,
        "levels": first["levels"],
        "metrics": first["metrics"],
        "verdict": first["verdict"],
        "seconds": {phase: max(r["seconds"].get(phase, 0.0) for r in ranks) for phase in first["seconds"]},
        "machine": {**machines[0], "peak_bytes": max(m["peak_bytes"] for m in machines)},
        "projected_bytes": max(m["projected_bytes"] for m in machines),
        "ranks": machines,
        "left_out": first["left_out"],
        "masked": first["masked"],
        "decoded": first["decoded"],
        "fill": "nan" if math.isnan(first["fill"]) else first["fill"],
    }

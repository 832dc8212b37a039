"""The summary of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskreg.deferred import DeferredModule
from daskreg.errors import counted
from daskreg.reporting.lines import level_line

if TYPE_CHECKING:
    from daskreg.engine import verdict as verdicts
    from daskreg.workflows.result import Report
else:
    verdicts = DeferredModule("daskreg.engine.verdict")


def summary(path: str, report: Report, *, logged: bool = False) -> list[str]:
    """What to print when a run is done. logged: without its levels and its verdict, which the log has in the same place."""
    return [*lines_of(report, logged=logged), *([] if logged else _verdict(report)), f"result: {path}"]


def lines_of(report: Report, *, logged: bool = False) -> list[str]:
    """Levels, measures and times of a run. logged: without its levels."""
    before, after = report["metrics"]["before"], report["metrics"]["after"]
    lines = [] if logged else [level_line(level) for level in report["levels"]]
    worse = " (both lower than at the start)" if min(verdicts.losses(before, after).values()) > 0 else ""
    start = ", before by the affine part of the initial transform alone" if "before_by" in report["metrics"] else ""
    ncc, mi = (f"{before[m]:.3f} -> {after[m]:.3f}" for m in ("ncc", "mi"))
    lines.append(f"correlation {ncc}, mutual information {mi}{start}{worse}")
    if "jacobian" in report["metrics"]:
        j = report["metrics"]["jacobian"]
        span = f"{j['smallest']:.2f} to {j['largest']:.2f}"
        lines.append(f"folded voxels {j['folded_percent']:.4f} %, Jacobian of the displacement {span}")
    return [*lines, _times(report)]


def _verdict(report: Report) -> list[str]:
    verdict = verdicts.Verdict.of_record(report.get("verdict"))
    return [] if verdict is None else [verdict.line()]


def _times(report: Report) -> str:
    """Where the time went, by phase, and what of it was compilation."""
    seconds, peak = report["seconds"], report["machine"]["peak_bytes"] / 2**20
    phases = {k: v for k, v in seconds.items() if k != "total"}
    other = seconds["total"] - sum(phases.values())
    if other >= 0.05:
        phases["other"] = other
    text = ", ".join(f"{k} {v:.1f}" for k, v in phases.items())
    compiled: dict[str, Any] = report["machine"].get("compiled", {})
    parts = []
    if compiled.get("kernels"):
        parts.append(f"{compiled['seconds']:.1f} of them to compile {counted(compiled['kernels'], 'kernel')}")
    if compiled.get("waited", 0.0) >= 0.05:
        parts.append(f"{compiled['waited']:.1f} to wait for other processes that compile, or for a core")
    if parts:
        text += f"; {' and '.join(parts)}, once on this machine"
    return f"{seconds['total']:.1f} s ({text}), {peak:.0f} MiB"

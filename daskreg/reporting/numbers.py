"""The page's numbers: what a run has recorded, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import yaml

from daskreg.comm import LinkSpeed
from daskreg.grid import Grid
from daskreg.reporting import views
from daskreg.reporting.charts import COLOURS, losses
from daskreg.storage import RunStore
from daskreg.transforms.jacobian import EXTREME

UNKNOWN = "–"


def headline(record: dict[str, Any], measured: dict[str, Any], unit: str) -> list[dict[str, str]]:
    """The most important figures, a card each."""
    cards = _likeness(record.get("metrics", {})) + _quality(measured, unit) + _folding(record.get("metrics", {}))
    machine = record.get("machine", {})
    seconds, peak = record.get("seconds", {}).get("total"), machine.get("peak_bytes")
    cards += [_card("Time", duration(seconds), f"{machine.get('threads', UNKNOWN)} threads")] if seconds else []
    return cards + ([_card("Peak memory", memory(peak), "of the process")] if peak else [])


def _likeness(metrics: dict[str, Any]) -> list[dict[str, str]]:
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    names = (("ncc", "Correlation", ""), ("mi", "Mutual information", " nats"))
    return [_change(title, before.get(k), after.get(k), unit) for k, title, unit in names if after.get(k) is not None]


def _quality(measured: dict[str, Any], unit: str) -> list[dict[str, str]]:
    cards = []
    if "dice" in measured:
        dice = measured["dice"]
        cards.append(_change(f"Dice, mean of {len(dice['labels'])}", dice["before"], dice["after"], ""))
    if "landmarks" in measured:
        errors = measured["landmarks"]
        before, after = errors["before"]["mean"], errors["after"]["mean"]
        cards.append(_change(f"Landmarks, mean of {errors['count']}", before, after, f" {unit}"))
    return cards


def _folding(metrics: dict[str, Any]) -> list[dict[str, str]]:
    found = metrics.get("jacobian")
    if not found:
        return []
    span = f"{found['smallest']:.2f} – {found['largest']:.2f}".replace("-0.00", "0.00")
    return [
        _card("Folded voxels", f"{found['folded_percent']:.2g} %", "of the whole volume"),
        _card("Jacobian of the displacement", span, "smallest, largest" + _extreme(found)),
    ]


def _extreme(found: dict[str, Any]) -> str:
    """The share beyond a factor, which runs of earlier versions do not have."""
    share = found.get("extreme_percent")
    return "" if share is None else f"; {share:.2g} % beyond a factor of {EXTREME:g}"


def _card(title: str, value: str, under: str) -> dict[str, str]:
    return {"title": title, "value": value, "under": under}


def _change(title: str, before: float | None, after: float | None, unit: str) -> dict[str, str]:
    return _card(title, _number(after) + unit, f"before {_number(before)}{unit}")


def label_rows(measured: dict[str, Any]) -> list[dict[str, str]]:
    """Dice by label, as bars."""
    return [_label_row(number, record) for number, record in measured.get("dice", {}).get("labels", {}).items()]


def _label_row(number: str, record: dict[str, Any]) -> dict[str, str]:
    missing = record.get("missing")
    text = f"{_number(record['before'])} → {_number(record['after'])}"
    if missing:
        text = "in neither image" if missing == "both" else f"not in the {missing} image"
    percent, was = (f"{100 * (record[k] or 0):.1f}" for k in ("after", "before"))
    return {"label": number, "text": text, "percent": percent, "was": was}


def phases(record: dict[str, Any]) -> list[dict[str, str]]:
    """Seconds of each phase; the rest of the total is start and wait."""
    seconds = dict(record.get("seconds", {}))
    total = seconds.pop("total", sum(seconds.values())) or 1.0
    seconds["start and wait"] = max(0.0, total - sum(seconds.values()))
    return [
        {"name": k, "time": duration(v), "percent": f"{100 * v / total:.2f}", "colour": COLOURS[i % len(COLOURS)]}
        for i, (k, v) in enumerate(seconds.items())
    ]


def level_row(level: dict[str, Any]) -> list[str]:
    """Stage, scale, shape, iterations, first and last loss, seconds, why it stopped."""
    values = losses(level)
    ends = (f"{values[0]:.5f}", f"{values[-1]:.5f}") if values else (UNKNOWN, UNKNOWN)
    count = str(len(level["losses"]))
    size, seconds = product(level["shape"]), f"{level['seconds']:.2f}"
    return [level["stage"], str(level["scale"]), size, count, *ends, seconds, level["stopped"]]


def input_row(role: str, record: dict[str, Any]) -> list[str]:
    """Role, name, format, type, shape and voxel size of an image."""
    spacing = f"{product(record['spacing'])} {views.short_unit(record.get('unit'))}"
    return [
        role,
        str(record["name"]),
        str(record.get("format", "")),
        str(record.get("dtype", "")),
        product(record["shape"]),
        spacing,
    ]


def masks(record: dict[str, Any]) -> list[str]:
    """How much of each image its mask leaves, where it has one."""
    found = []
    for (role, image), count in zip(record.get("inputs", {}).items(), record.get("masked", ()), strict=False):
        if count is not None:
            size = math.prod(image["shape"])
            found.append(f"The {role} mask leaves {100 * count / size:.3g} % of the {role} image ({count} of {size} voxels).")
    return found


def affine(run: RunStore) -> dict[str, Any]:
    """The matrix, and what it does to the centre of the fixed image, to volumes and to directions."""
    matrix, grid = run.affine, run.fixed_grid
    linear = matrix[:3, :3]
    u, scales, vt = np.linalg.svd(linear)
    rotation = u @ vt
    cosine = (np.trace(rotation * np.sign(np.linalg.det(rotation))) - 1) / 2
    return {
        "rows": [[f"{v:.5g}" for v in row] for row in matrix],
        "identity": bool(np.allclose(matrix, np.eye(4))),
        "shift": _shift(matrix, grid),
        "angle": f"{math.degrees(math.acos(float(np.clip(cosine, -1, 1)))):.2f}°",
        "scales": ", ".join(f"{v:.3f}" for v in scales),
        "volume": f"{np.linalg.det(linear):.4f}",
    }


def _shift(matrix: Any, grid: Grid) -> str:
    moved = matrix[:3, :3] @ grid.center + matrix[:3, 3] - grid.center
    return f"{', '.join(f'{v:.3g}' for v in moved)} {views.short_unit(grid.unit)}"


def recipe(config: dict[str, Any]) -> str:
    """YAML that ``Config.load`` reads, each stage's name first."""
    stages = [{"stage": s.get("stage"), **s} for s in config.get("stages", [])]
    return yaml.safe_dump({**config, "stages": stages}, sort_keys=False, default_flow_style=None, width=100)


def machine(record: dict[str, Any]) -> dict[str, str]:
    """What the run has recorded of the computer, its peak memory in words."""
    found = dict(record.get("machine", {}))
    if "peak_bytes" in found:
        found["peak memory"] = memory(found.pop("peak_bytes"))
    if link := found.pop("link", None):
        speed = LinkSpeed(link["seconds"], link["bytes_per_second"], link["size"])
        found["link between ranks"] = f"{link['transport']}, {speed}"
    for name in ("start_bytes", "projected_bytes"):
        found.pop(name, None)
    return {k: str(v) for k, v in found.items()}


def short_name(record: dict[str, Any], role: str) -> str:
    """An image's file name, without its folder."""
    name = str(record.get("inputs", {}).get(role, {}).get("name", "array"))
    path, mark, options = name.partition("::")
    return path.rstrip("/").rpartition("/")[2] + mark + options


def duration(seconds: float) -> str:
    """``48 ms``, ``12.3 s``, ``4 min 05 s`` or ``2 h 07 min``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(count: float) -> str:
    """Bytes in MiB, or GiB from 1 GiB on."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _number(value: float | None) -> str:
    """Three decimals, as similarities and Dice are quoted; fewer where the number is large."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return "0.000" if text == "-0.000" else text


def product(values: Sequence[float]) -> str:
    """``2 × 1 × 1``."""
    return " × ".join(f"{v:g}" for v in values)


def date(text: str | None) -> str:
    """An ISO time as ``05 March 2026, 14:02 UTC``; what it was where it is none."""
    try:
        return datetime.fromisoformat(text or "").strftime("%d %B %Y, %H:%M %Z")
    except ValueError:
        return text or UNKNOWN

"""``daskreg report``: a finished run as one self-contained page for a person."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from daskreg.errors import ConfigError, InputError
from daskreg.grid import Grid
from daskreg.storage import RunStore
from daskreg.storage.fs.atomic import atomic_output, require_distinct, require_writable
from daskreg.storage.runs.run import DISPLACEMENT
from daskreg.storage.runs.transforms import read_transform
from daskreg.workflows.report_page import pictures, views
from daskreg.workflows.report_page.charts import COLOURS, loss_panels, losses
from daskreg.workflows.report_page.sampling import Plane, Source, Warp, informative_slices, read_planes, shown_level

log = logging.getLogger("daskreg")
TEMPLATE = "page.html.j2"
UNKNOWN = "–"


def write_report(
    run: Any,
    output: str | Path,
    *,
    fixed_labels: Any = None,
    moving_labels: Any = None,
    landmarks: Any = None,
    inverse: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the page about ``run`` (a path, a RunStore or the Result of ``register``) to ``output``; returns where it is.

    fixed_labels, moving_labels, landmarks: as for ``evaluate``; without them the page has no Dice and no distances.
    inverse: what ``daskreg invert`` wrote of this run: its certificate goes onto the page.
    The inputs are looked for under the names they had; without them the page says so and shows ``moved`` alone.

    Raises OutputExists, OutputError, OutOfSpace; NotFound, Unreadable and IncompleteRun for the run.
    """
    require_writable(str(output), overwrite)
    store = _store(run)
    require_distinct(output, store.path, fixed_labels, moving_labels, landmarks, inverse)
    measured = _evaluated(store, fixed_labels, moving_labels, landmarks)
    text = render(store, measured, None if inverse is None else certificate(inverse, store.fixed_grid))
    with atomic_output(str(output), overwrite) as place:
        Path(place).write_text(text, encoding="utf-8")
    return Path(output)


def certificate(inverse: str | Path, fixed: Grid | None = None) -> dict[str, str]:
    """What is certified of an inverse, for people. Raises ConfigError where nothing is, or where it leads to another grid."""
    contents = read_transform(inverse)
    found = contents.metadata.get("certificate")
    if not isinstance(found, dict):
        raise ConfigError(f"{inverse} has no certificate of an inverse; give what 'daskreg invert' wrote.")
    if fixed is not None and contents.moving is not None and not _alike(fixed, contents.moving):
        raise ConfigError(f"{inverse} is the inverse of another transform: it leads to another grid than this run's fixed image.")
    solved, around = found.get("fixed_point"), found["beyond_limit_within"]
    where = "" if around is None else f", all within {tuple(around['start'])} to {tuple(around['stop'])}"
    facts = {
        "there and back, mean": f"{found['mean']:.2g} voxel over {found['voxels']} voxels",
        "largest": f"{found['largest']:.2g} voxel at {tuple(found['worst_voxel'])} (z, y, x)",
        f"beyond {found['limit']:g} voxel": f"{found['beyond_limit']} voxels{where}",
    }
    other = found.get("back_and_there")  # older ones have none
    if other:
        facts["back and there, mean"] = f"{other['mean']:.2g} voxel, largest {other['largest']:.2g}"
        facts["folded"] = f"{found['folded_voxels']} voxels"
    if solved:
        share = 100 * solved["unproven_voxels"] / solved["voxels"]
        facts["fixed point, residual"] = f"at most {solved['residual']:.2g} voxel"
        facts["proven error"] = f"at most {solved['bound']:.2g} voxel, without proof at {share:.2g} % of voxels"
    return facts


def _alike(a: Grid, b: Grid) -> bool:
    if a.shape != b.shape or (a.unit is None) != (b.unit is None):
        return False
    return bool(np.allclose(a.index_to_world, b.to_unit(a.unit).index_to_world, rtol=1e-5, atol=1e-3 * min(a.spacing)))


def render(run: RunStore, measured: dict[str, Any] | None = None, inverse: dict[str, str] | None = None) -> str:
    """The page's text. measured: ``Evaluation.as_dict()``; inverse: ``certificate``."""
    told, grid = run.provenance, run.fixed_grid
    context = {
        **_images(run, told),
        "names": {role: _short_name(told, role) for role in ("fixed", "moving")},
        "run": run.path,
        "finished": _date(run.state.get("finished")),
        "headline": _headline(told, measured or {}, views.short_unit(grid.unit)),
        "labels": _label_rows(measured or {}),
        "phases": _phases(told),
        "losses": loss_panels(told.get("levels", []), told.get("config", {}).get("stages", [])),
        "levels": [_level_row(v) for v in told.get("levels", [])],
        "inputs": [_input_row(role, v) for role, v in told.get("inputs", {}).items()],
        "affine": _affine(run),
        "inverse": inverse or {},
        "versions": told.get("versions", {}),
        "machine": _machine(told),
        "config": _recipe(told.get("config", {})),
    }
    source = (files("daskreg.workflows.report_page") / TEMPLATE).read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return page.from_string(source).render(context)


def _store(run: Any) -> RunStore:
    return run if isinstance(run, RunStore) else RunStore.open(run if isinstance(run, str | Path) else run.path)


def _evaluated(run: RunStore, fixed_labels: Any, moving_labels: Any, landmarks: Any) -> dict[str, Any] | None:
    if fixed_labels is None and moving_labels is None and landmarks is None:
        return None
    from daskreg.workflows.evaluate import evaluate  # compiles kernels: only when asked for

    return evaluate(run, fixed_labels=fixed_labels, moving_labels=moving_labels, landmarks=landmarks).as_dict()


# --- pictures ----------------------------------------------------------------------------------------------------------------


def _images(run: RunStore, told: dict[str, Any]) -> dict[str, Any]:
    level = shown_level(run)
    moved = run.read_image("moved", level)
    pixel = views.pixel_size(moved.grid)
    three = views.three_views(moved.grid, informative_slices(run, moved.grid), pixel)
    sources, notes = _sources(run, told, pixel)
    planes = dict(zip(["moved", *sources], read_planes([Source(moved.data, moved.grid), *sources.values()], three), strict=True))
    bar = views.bar_length(min(v.shape[1] for v in three) * pixel)
    shades = _shades(planes, told.get("config", {}).get("intensity") == "log")
    return {
        "views": [_view(v, bar) for v in three],
        "widest": max(v.shape[1] for v in three),
        "columns": _columns(shades),
        "overlays": _overlays(shades),
        "missing": notes,
        "unit": views.short_unit(moved.grid.unit),
        "oriented": moved.grid.oriented,
        "level": level,
        "spacing": _by(moved.grid.spacing),
        "warp": _warp(run, level, three) if run.has(DISPLACEMENT) else None,
    }


def _sources(run: RunStore, told: dict[str, Any], pixel: float) -> tuple[dict[str, Source], list[str]]:
    """Both inputs as far as they are still there, and a sentence for each that is not."""
    sources, notes = {}, []
    for role, grid in (("fixed", run.fixed_grid), ("moving", run.moving_grid)):
        name = str(told.get("inputs", {}).get(role, {}).get("name", "array"))
        if name == "array":
            notes.append(f"The {role} image was an array in memory and is not shown.")
            continue
        try:
            sources[role] = Source.of_input(name, grid, pixel)
        except InputError as error:
            notes.append(f"The {role} image is not shown: {error}")
            log.warning("the report is written without the %s image: %s", role, error)
    return sources, notes


def _shades(planes: dict[str, list[Plane]], logarithmic: bool) -> dict[str, list[Any]]:
    """Planes in [0, 1]: moving and moved through one window, so that they compare."""
    theirs = pictures.Window.of([*planes["moved"], *planes.get("moving", [])], logarithmic)
    own = pictures.Window.of(planes["fixed"], logarithmic) if "fixed" in planes else theirs
    return {name: [(own if name == "fixed" else theirs)(p) for p in some] for name, some in planes.items()}


def _columns(shades: dict[str, list[Any]]) -> list[dict[str, Any]]:
    titles = {
        "fixed": ("Fixed", ""),
        "moving": ("Moving", "before, placed by its header"),
        "moved": ("Moved", "after, on the fixed grid"),
    }
    return [
        {"title": title, "note": note, "images": [pictures.data_uri(pictures.gray(s)) for s in shades[name]]}
        for name, (title, note) in titles.items()
        if name in shades
    ]


def _overlays(shades: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Before and after, in two colours and as a checkerboard; as far as the inputs are there."""
    if "fixed" not in shades:
        return []
    kinds = (("Overlay", pictures.overlay), ("Checkerboard", pictures.checkerboard))
    times = [("before", "moving"), ("after", "moved")]
    return [
        {"key": f"{kind.lower()}-{when}", "title": f"{kind}, {when}", "images": _paired(draw, shades["fixed"], shades[name])}
        for kind, draw in kinds
        for when, name in times
        if name in shades
    ]


def _paired(draw: Callable[[Any, Any], pictures.Pixels], fixed: Sequence[Any], other: Sequence[Any]) -> list[str]:
    return [pictures.data_uri(draw(a, b)) for a, b in zip(fixed, other, strict=True)]


def _warp(run: RunStore, level: int, three: Sequence[views.View]) -> dict[str, Any]:
    warps = [Warp.read(run, level, v) for v in three]
    stretch, length = pictures.jacobian_scale(warps), pictures.magnitude_scale(warps)
    return {
        "jacobian": [pictures.data_uri(stretch(w.on_page(w.determinant))) for w in warps],
        "jacobian_scale": stretch,
        "length": [pictures.data_uri(length(w.on_page(np.linalg.norm(w.u, axis=0)))) for w in warps],
        "length_scale": length,
        "lines": [pictures.grid_lines(w) for w in warps],
        "folds": any((w.determinant <= 0).any() for w in warps),
    }


def _view(view: views.View, bar: float) -> dict[str, Any]:
    rows, columns = view.shape
    return {
        "name": view.name,
        "where": view.where,
        "rows": rows,
        "columns": columns,
        "edges": dict(zip(("top", "right", "bottom", "left"), view.edges, strict=True)),
        "bar": f"{bar:g} {views.short_unit(view.grid.unit)}",
        "bar_percent": 100 * bar / (columns * view.pixel),
    }


# --- numbers -----------------------------------------------------------------------------------------------------------------


def _headline(told: dict[str, Any], measured: dict[str, Any], unit: str) -> list[dict[str, str]]:
    """What a reader wants first; a card each."""
    cards = _likeness(told.get("metrics", {})) + _quality(measured, unit) + _folding(told.get("metrics", {}))
    machine = told.get("machine", {})
    seconds, peak = told.get("seconds", {}).get("total"), machine.get("peak_bytes")
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
        _card("Jacobian", span, "smallest, largest"),
    ]


def _card(title: str, value: str, under: str) -> dict[str, str]:
    return {"title": title, "value": value, "under": under}


def _change(title: str, before: float | None, after: float | None, unit: str) -> dict[str, str]:
    return _card(title, _number(after) + unit, f"before {_number(before)}{unit}")


def _label_rows(measured: dict[str, Any]) -> list[dict[str, str]]:
    """Dice by label, as bars."""
    return [_label_row(number, told) for number, told in measured.get("dice", {}).get("labels", {}).items()]


def _label_row(number: str, told: dict[str, Any]) -> dict[str, str]:
    missing = told.get("missing")
    text = f"{_number(told['before'])} → {_number(told['after'])}"
    if missing:
        text = "in neither image" if missing == "both" else f"not in the {missing} image"
    percent, was = (f"{100 * (told[k] or 0):.1f}" for k in ("after", "before"))
    return {"label": number, "text": text, "percent": percent, "was": was}


def _phases(told: dict[str, Any]) -> list[dict[str, str]]:
    """Where the time went; what the phases leave of the total is start and waiting."""
    seconds = dict(told.get("seconds", {}))
    total = seconds.pop("total", sum(seconds.values())) or 1.0
    seconds["start and wait"] = max(0.0, total - sum(seconds.values()))
    return [
        {"name": k, "time": duration(v), "percent": f"{100 * v / total:.2f}", "colour": COLOURS[i % len(COLOURS)]}
        for i, (k, v) in enumerate(seconds.items())
    ]


def _level_row(level: dict[str, Any]) -> list[str]:
    values = losses(level)
    ends = (f"{values[0]:.5f}", f"{values[-1]:.5f}") if values else (UNKNOWN, UNKNOWN)
    count = str(len(level["losses"]))
    return [level["stage"], str(level["scale"]), _by(level["shape"]), count, *ends, f"{level['seconds']:.2f}", level["stopped"]]


def _input_row(role: str, told: dict[str, Any]) -> list[str]:
    spacing = f"{_by(told['spacing'])} {views.short_unit(told.get('unit'))}"
    return [role, str(told["name"]), str(told.get("format", "")), str(told.get("dtype", "")), _by(told["shape"]), spacing]


def _affine(run: RunStore) -> dict[str, Any]:
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


def _recipe(config: dict[str, Any]) -> str:
    """YAML that ``Config.load`` reads, each stage's name first."""
    stages = [{"stage": s.get("stage"), **s} for s in config.get("stages", [])]
    return yaml.safe_dump({**config, "stages": stages}, sort_keys=False, default_flow_style=None, width=100)


def _machine(told: dict[str, Any]) -> dict[str, str]:
    found = dict(told.get("machine", {}))
    if "peak_bytes" in found:
        found["peak memory"] = memory(found.pop("peak_bytes"))
    return {k: str(v) for k, v in found.items()}


def _short_name(told: dict[str, Any], role: str) -> str:
    name = str(told.get("inputs", {}).get(role, {}).get("name", "array"))
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


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def _date(text: str | None) -> str:
    try:
        return datetime.fromisoformat(text or "").strftime("%d %B %Y, %H:%M %Z")
    except ValueError:
        return text or UNKNOWN

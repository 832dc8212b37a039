"""The page's pictures: three views of each image, before and after, and of the displacement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from daskreg.errors import InputError
from daskreg.reporting import matched, numbers, pictures, views
from daskreg.reporting.sampling import Plane, Source, Warp, informative_slices, read_planes, shown_level
from daskreg.storage import RunStore
from daskreg.storage.recorded_images import recorded_image
from daskreg.storage.runs.layout import DISPLACEMENT

log = logging.getLogger("daskreg")


def images(run: RunStore, record: dict[str, Any]) -> dict[str, Any]:
    """The template's variables for all pictures. record: the run's provenance."""
    level = shown_level(run)
    moved = run.read_image("moved", level)
    pixel = views.pixel_size(moved.grid)
    three = views.three_views(moved.grid, informative_slices(run, moved.grid), pixel)
    sources, notes = _sources(run, record, pixel)
    planes = dict(zip(["moved", *sources], read_planes([Source(moved.data, moved.grid), *sources.values()], three), strict=True))
    bar = views.bar_length(min(v.shape[1] for v in three) * pixel)
    shades = _shades(planes, record.get("config", {}).get("intensity") == "log")
    return {
        "views": [_view(v, bar) for v in three],
        "widest": max(v.shape[1] for v in three),
        "columns": _columns(shades),
        "overlays": _overlays(shades),
        "missing": notes,
        "verdict": matched.verdict(record, run.fixed_grid, three, shades["moved"]),
        "unit": views.short_unit(moved.grid.unit),
        "oriented": moved.grid.oriented,
        "level": level,
        "spacing": numbers.product(moved.grid.spacing),
        "warp": _warp(run, level, three) if run.has(DISPLACEMENT) else None,
    }


def thumbnails(run: RunStore, record: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Titles and three views each, as ``data:`` URIs: the moved image, and it over the fixed one where that still exists."""
    level = shown_level(run)
    moved = run.read_image("moved", level)
    pixel = views.pixel_size(moved.grid)
    three = views.three_views(moved.grid, informative_slices(run, moved.grid), pixel)
    sources = {k: v for k, v in _sources(run, record, pixel)[0].items() if k == "fixed"}
    planes = dict(zip(["moved", *sources], read_planes([Source(moved.data, moved.grid), *sources.values()], three), strict=True))
    shades = _shades(planes, record.get("config", {}).get("intensity") == "log")
    rows = [("moved", [pictures.data_uri(pictures.gray(s)) for s in shades["moved"]])]
    if "fixed" in shades:
        rows.append(("fixed and moved, in two colours", _paired(pictures.overlay, shades["fixed"], shades["moved"])))
    return rows


def _sources(run: RunStore, record: dict[str, Any], pixel: float) -> tuple[dict[str, Source], list[str]]:
    """The inputs that still exist, and a sentence for each that does not."""
    sources, notes = {}, []
    for role, grid in (("fixed", run.fixed_grid), ("moving", run.moving_grid)):
        try:
            address = recorded_image(run, role)
            if address is None:
                notes.append(f"The {role} image was an array in memory and is not shown.")
            else:
                sources[role] = Source.of_input(address, grid, pixel)
        except InputError as error:
            notes.append(f"The {role} image is not shown: {error}")
            log.warning("the report is written without the %s image: %s", role, error)
    return sources, notes


def _shades(planes: dict[str, list[Plane]], logarithmic: bool) -> dict[str, list[Any]]:
    """Planes in [0, 1]: moving and moved through one window, so that they compare."""
    theirs = pictures.IntensityWindow.of([*planes["moved"], *planes.get("moving", [])], logarithmic)
    own = pictures.IntensityWindow.of(planes["fixed"], logarithmic) if "fixed" in planes else theirs
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
    """Before and after, in two colours and as a checkerboard; for the inputs that exist."""
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

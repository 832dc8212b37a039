"""Render the page: numbers and pictures of a run, filled into the template."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from daskreg.reporting import numbers, views
from daskreg.reporting.charts import loss_panels
from daskreg.reporting.images import images
from daskreg.storage import RunStore

TEMPLATE = "page.html.j2"


def render(run: RunStore, measured: dict[str, Any] | None = None, inverse: dict[str, str] | None = None) -> str:
    """The page's HTML. measured: ``Evaluation.as_dict()``; inverse: the result of ``certificate``."""
    record, grid = run.provenance, run.fixed_grid
    context = {
        **images(run, record),
        "names": {role: numbers.short_name(record, role) for role in ("fixed", "moving")},
        "run": run.path,
        "finished": numbers.date(run.state.get("finished")),
        "headline": numbers.headline(record, measured or {}, views.short_unit(grid.unit)),
        "warnings": (measured or {}).get("warnings", []),
        "labels": numbers.label_rows(measured or {}),
        "phases": numbers.phases(record),
        "losses": loss_panels(record.get("levels", []), record.get("config", {}).get("stages", [])),
        "levels": [numbers.level_row(v) for v in record.get("levels", [])],
        "inputs": [numbers.input_row(role, v) for role, v in record.get("inputs", {}).items()],
        "masks": numbers.masks(record),
        "affine": numbers.affine(run),
        "inverse": inverse or {},
        "versions": record.get("versions", {}),
        "machine": numbers.machine(record),
        "config": numbers.recipe(record.get("config", {})),
    }
    source = (files("daskreg.reporting") / TEMPLATE).read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return page.from_string(source).render(context)

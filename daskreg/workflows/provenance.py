"""The provenance of a run: configuration, inputs, versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from daskreg.planning import Plan
from daskreg.storage import Volume
from daskreg.workflows.result import Report

PACKAGES = ("daskreg", "numpy", "numba", "dask", "distributed", "zarr", "scipy", "nibabel")


def provenance(plan: Plan, fixed: Volume, moving: Volume) -> Report:
    """The part of a report that is known before the run."""
    return {
        "config": plan.config.model_dump(mode="json"),
        "inputs": {role: _described(v) for role, v in (("fixed", fixed), ("moving", moving))},
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def _described(volume: Volume) -> dict[str, Any]:
    grid = volume.grid
    return {"name": volume.name, "format": volume.format, "dtype": str(volume.dtype), "shape": grid.shape,
            "spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction, "unit": grid.unit}  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

"""3D image registration from a laptop-sized brain to a 10-gigavoxel archive, on Dask.

The public API is imported when first used, so that ``daskreg --help`` does not wait for Numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskreg.config import Affine, Config, Deformable, Moments, Rigid, Search, SimilarityStage
    from daskreg.grid import Grid
    from daskreg.lazy.load import load_transform
    from daskreg.lazy.transform import Transform
    from daskreg.similarity import LNCC, MI, MSE
    from daskreg.storage import Volume, open_volume
    from daskreg.workflows.apply import apply
    from daskreg.workflows.evaluate import evaluate
    from daskreg.workflows.export import export
    from daskreg.workflows.info import describe
    from daskreg.workflows.invert import invert
    from daskreg.workflows.jacobian import jacobian
    from daskreg.workflows.points import points
    from daskreg.workflows.presets import PRESETS
    from daskreg.workflows.refine import refine
    from daskreg.workflows.register import Result, plan, register
    from daskreg.workflows.report import write_report
    from daskreg.workflows.verify import verify

__version__ = "0.1.0"

_HOMES = {
    "daskreg.config": ("Affine", "Config", "Deformable", "Moments", "Rigid", "Search", "SimilarityStage"),
    "daskreg.grid": ("Grid",),
    "daskreg.similarity": ("LNCC", "MI", "MSE"),
    "daskreg.storage": ("Volume", "open_volume"),
    "daskreg.workflows.apply": ("apply",),
    "daskreg.workflows.evaluate": ("evaluate",),
    "daskreg.workflows.export": ("export",),
    "daskreg.workflows.info": ("describe",),
    "daskreg.workflows.invert": ("invert",),
    "daskreg.workflows.jacobian": ("jacobian",),
    "daskreg.lazy.load": ("load_transform",),
    "daskreg.workflows.points": ("points",),
    "daskreg.workflows.presets": ("PRESETS",),
    "daskreg.workflows.refine": ("refine",),
    "daskreg.workflows.register": ("Result", "plan", "register"),
    "daskreg.workflows.report": ("write_report",),
    "daskreg.lazy.transform": ("Transform",),
    "daskreg.workflows.verify": ("verify",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LNCC",
    "MI",
    "MSE",
    "PRESETS",
    "Affine",
    "Config",
    "Deformable",
    "Grid",
    "Moments",
    "Result",
    "Rigid",
    "Search",
    "SimilarityStage",
    "Transform",
    "Volume",
    "apply",
    "describe",
    "evaluate",
    "export",
    "invert",
    "jacobian",
    "load_transform",
    "open_volume",
    "plan",
    "points",
    "refine",
    "register",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'daskreg' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""3D image registration from a laptop-sized brain to a 10-gigavoxel archive, on Dask.

Functions: ``register``, ``plan`` and ``verify`` take two images; ``apply``, ``points``, ``invert``, ``jacobian``, ``refine``,
``export``, ``evaluate`` and ``view`` take a transform; ``report`` and ``compare`` a run; ``info`` any file; ``demo`` and
``doctor`` nothing. Each is also a command.
Values: ``Config`` and its stages, ``Volume``, ``Grid``, ``Region``, ``Transform``; ``Plan``, ``Result``, and what the other
functions return. Every deliberate failure is a ``DaskregError``; ``daskreg.errors`` draws the tree.

The public API is imported when first used, so that ``daskreg --help`` does not wait for Numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskreg.cli.submission import submit
    from daskreg.config import Affine, Config, Deformable, Moments, Rigid, Search, SimilarityStage
    from daskreg.engine.report import Progress
    from daskreg.engine.verdict import Verdict
    from daskreg.errors import (
        ArgumentError,
        ArrayError,
        AxesError,
        ConfigError,
        DaskregError,
        Diverged,
        GridError,
        IncompleteRun,
        InputError,
        NoOverlap,
        NotFound,
        OutOfSpace,
        OutputBusy,
        OutputError,
        OutputExists,
        PlanTooLarge,
        RankLost,
        RunError,
        Stopped,
        UnitsError,
        Unreachable,
        Unreadable,
        VoxelError,
    )
    from daskreg.grid import Grid, Region
    from daskreg.lazy.load import load_transform
    from daskreg.lazy.transform import Transform
    from daskreg.optimizers.adam import Adam
    from daskreg.optimizers.sgd import SGD
    from daskreg.planning import Plan
    from daskreg.similarity import LNCC, MI, MSE, NGF
    from daskreg.storage import RunStore, Volume, open_volume
    from daskreg.workflows.apply import apply
    from daskreg.workflows.compare import ProgramComparison, compare
    from daskreg.workflows.control import next_level, stop
    from daskreg.workflows.demo import demo, demo_pair
    from daskreg.workflows.doctor import Examination, doctor
    from daskreg.workflows.evaluate import Evaluation, evaluate
    from daskreg.workflows.export import export
    from daskreg.workflows.info import Info, describe, info
    from daskreg.workflows.invert import Certificate, invert
    from daskreg.workflows.jacobian import Folds, jacobian
    from daskreg.workflows.plan import plan
    from daskreg.workflows.points import points
    from daskreg.workflows.precompile import precompile
    from daskreg.workflows.presets import PRESETS
    from daskreg.workflows.refine import Refined, refine
    from daskreg.workflows.register import register
    from daskreg.workflows.report import report, write_report
    from daskreg.workflows.result import Report, Result
    from daskreg.workflows.series import Series, series
    from daskreg.workflows.submit import Job
    from daskreg.workflows.verify import Verification, verify
    from daskreg.workflows.view import ServedImages, view

__version__ = "0.1.0"

_MODULES = {
    "daskreg.cli.submission": ("submit",),
    "daskreg.config": ("Affine", "Config", "Deformable", "Moments", "Rigid", "Search", "SimilarityStage"),
    "daskreg.engine.report": ("Progress",),
    "daskreg.engine.verdict": ("Verdict",),
    "daskreg.errors": (
        "ArgumentError", "ArrayError", "AxesError", "ConfigError", "DaskregError", "Diverged", "GridError", "IncompleteRun",
        "InputError", "NoOverlap", "NotFound", "OutOfSpace", "OutputBusy", "OutputError", "OutputExists", "PlanTooLarge",
        "RankLost", "RunError", "Stopped", "UnitsError", "Unreachable", "Unreadable", "VoxelError",
    ),
    "daskreg.grid": ("Grid", "Region"),
    "daskreg.lazy.load": ("load_transform",),
    "daskreg.lazy.transform": ("Transform",),
    "daskreg.optimizers.adam": ("Adam",),
    "daskreg.optimizers.sgd": ("SGD",),
    "daskreg.planning": ("Plan",),
    "daskreg.similarity": ("LNCC", "MI", "MSE", "NGF"),
    "daskreg.storage": ("RunStore", "Volume", "open_volume"),
    "daskreg.workflows.apply": ("apply",),
    "daskreg.workflows.compare": ("ProgramComparison", "compare"),
    "daskreg.workflows.control": ("next_level", "stop"),
    "daskreg.workflows.demo": ("demo", "demo_pair"),
    "daskreg.workflows.doctor": ("Examination", "doctor"),
    "daskreg.workflows.evaluate": ("Evaluation", "evaluate"),
    "daskreg.workflows.export": ("export",),
    "daskreg.workflows.info": ("Info", "describe", "info"),
    "daskreg.workflows.invert": ("Certificate", "invert"),
    "daskreg.workflows.jacobian": ("Folds", "jacobian"),
    "daskreg.workflows.plan": ("plan",),
    "daskreg.workflows.points": ("points",),
    "daskreg.workflows.precompile": ("precompile",),
    "daskreg.workflows.presets": ("PRESETS",),
    "daskreg.workflows.refine": ("Refined", "refine"),
    "daskreg.workflows.register": ("register",),
    "daskreg.workflows.report": ("report", "write_report"),
    "daskreg.workflows.result": ("Report", "Result"),
    "daskreg.workflows.series": ("Series", "series"),
    "daskreg.workflows.submit": ("Job",),
    "daskreg.workflows.verify": ("Verification", "verify"),
    "daskreg.workflows.view": ("ServedImages", "view"),
}  # fmt: skip
_MODULE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "LNCC",
    "MI",
    "MSE",
    "NGF",
    "PRESETS",
    "SGD",
    "Adam",
    "Affine",
    "ArgumentError",
    "ArrayError",
    "AxesError",
    "Certificate",
    "Config",
    "ConfigError",
    "DaskregError",
    "Deformable",
    "Diverged",
    "Evaluation",
    "Examination",
    "Folds",
    "Grid",
    "GridError",
    "IncompleteRun",
    "Info",
    "InputError",
    "Job",
    "Moments",
    "NoOverlap",
    "NotFound",
    "OutOfSpace",
    "OutputBusy",
    "OutputError",
    "OutputExists",
    "Plan",
    "PlanTooLarge",
    "ProgramComparison",
    "Progress",
    "RankLost",
    "Refined",
    "Region",
    "Report",
    "Result",
    "Rigid",
    "RunError",
    "RunStore",
    "Search",
    "Series",
    "ServedImages",
    "SimilarityStage",
    "Stopped",
    "Transform",
    "UnitsError",
    "Unreachable",
    "Unreadable",
    "Verdict",
    "Verification",
    "Volume",
    "VoxelError",
    "apply",
    "compare",
    "demo",
    "demo_pair",
    "describe",
    "doctor",
    "evaluate",
    "export",
    "info",
    "invert",
    "jacobian",
    "load_transform",
    "next_level",
    "open_volume",
    "plan",
    "points",
    "precompile",
    "refine",
    "register",
    "report",
    "series",
    "stop",
    "submit",
    "verify",
    "view",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        near = None if name.startswith("__") else import_module("daskreg.errors").closest(name, __all__, 0.7)
        raise AttributeError(f"module 'daskreg' has no attribute {name!r}{f'; did you mean {near!r}?' if near else ''}")
    value = globals()[name] = getattr(import_module(_MODULE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

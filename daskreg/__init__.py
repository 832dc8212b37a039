"""3D image registration from a laptop-sized brain to a 10-gigavoxel archive, on Dask."""

from daskreg.config import LNCC, MI, MSE, Affine, Config, Deformable, Moments, Rigid, Search, SimilarityStage
from daskreg.grid import Grid
from daskreg.storage import Volume, open_volume
from daskreg.workflows.presets import PRESETS
from daskreg.workflows.register import Result, prepare, register

__version__ = "0.1.0"

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
    "Volume",
    "open_volume",
    "prepare",
    "register",
]

"""The complete list of kernels: importing the modules that define them registers them."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

TORCH, TORCH_KERNELS = "daskreg.torch", "daskreg.torch.kernels"
KERNEL_PACKAGES = ("daskreg.kernels", "daskreg.similarity", "daskreg.optimizers", "daskreg.models")


@cache
def import_kernels() -> None:
    """Import every module of the packages that define kernels."""
    for package in KERNEL_PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)


def import_torch_kernels() -> None:
    """Import the modules of kernels of daskreg.torch without PyTorch, which they do not need: an empty package holds the place
    of daskreg.torch in this process.
    """
    package = ModuleType(TORCH)
    package.__path__ = [str(Path(__file__).parents[2] / "torch")]
    sys.modules.setdefault(TORCH, package)
    for module in pkgutil.iter_modules(importlib.import_module(TORCH_KERNELS).__path__, f"{TORCH_KERNELS}."):
        importlib.import_module(module.name)


def source_files() -> list[Path]:
    """The files of these packages, in one order."""
    folders = [Path(path) for package in KERNEL_PACKAGES for path in importlib.import_module(package).__path__]
    return sorted(file for folder in folders for file in folder.rglob("*.py"))

"""The other programs by name: where each is found, how it is installed, and one run of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from daskreg.errors import ConfigError, RunError
from daskreg.workflows.programs import inside
from daskreg.workflows.programs.inside import ProgramJob
from daskreg.workflows.programs.process import ProcessFailed, watched

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
UNTIMED = ("apply", "field")  # phases that are not registration


@dataclass(frozen=True)
class Program:
    """A program with settings.

    inside: its name in ``inside.py``;  package: what pip installs, empty where only a binary will do;  about: method and settings
    in a few words;  binary: a program on the PATH that does the same, empty without;  extra, device: see ``ProgramJob``;
    sources: where the binary is built from, where there is no package
    """

    inside: str
    package: str
    about: str
    binary: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    sources: str = ""

    @property
    def installation(self) -> str:
        """Commands that make an environment with it, or where its sources are."""
        if not self.package:
            return f"build it from {self.sources}"
        return f"python -m venv DIR && DIR/bin/pip install {self.package}"

    @property
    def example(self) -> str:
        """A path that says where it is."""
        return "DIR/bin/python" if self.package else f"DIR/bin/{self.binary}"


GREEDY_TUNED = {
    "metric": "NCC 4x4x4",
    "window": "3x3x3",
    "local_iterations": "100x100x50",
    "smoothing": "1.5vox 0.5vox",
}
NIFTYREG = "https://github.com/KCL-BMEIS/niftyreg"
_GREEDY = Program("greedy", "picsl_greedy", "affine NMI, then NCC 2x2x2, 100x50x20 iterations", "greedy")
_ANTS = Program("ants", "antspyx", "SyN with antspyx's defaults: mutual information")
_FIREANTS = Program("fireants", "fireants", "moments, affine, greedy with windowed CC 5, Adam; one contrast only")
PROGRAMS: dict[str, Program] = {
    "greedy": _GREEDY,
    "greedy_tuned": replace(_GREEDY, about="affine and local NCC, more iterations, less smoothing", extra=GREEDY_TUNED),
    "ants": _ANTS,
    "ants_cc": replace(_ANTS, about="SyNCC: cross-correlation in windows of radius 4", extra={"kind": "SyNCC"}),
    "fireants": _FIREANTS,
    "fireants_cuda": replace(_FIREANTS, about=f"{_FIREANTS.about}, on a GPU", device="cuda"),
    "elastix": Program("elastix", "itk-elastix", "default parameter maps rigid, affine, bspline: mutual information"),
    "niftyreg": Program("niftyreg", "", "reg_aladin, then reg_f3d: B-splines, NMI", "reg_f3d", sources=NIFTYREG),
}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """Where a program runs: an interpreter that imports it, or this one, which starts a binary."""

    python: str
    binary: str = ""


def find_environment(name: str, given: str | Path | None = None) -> Environment:
    """Where a program of ``PROGRAMS`` is.

    given: an interpreter, an environment's folder, or a binary; None: this environment, else the PATH.
    Raises ConfigError where it is not, with what installs it.
    """
    program = PROGRAMS[name]
    if given is not None:
        return _given(name, program, Path(given).expanduser())
    if program.package and _installed(program.package):
        return Environment(sys.executable)
    on_path = shutil.which(program.binary) if program.binary else None
    if on_path is not None:
        return Environment(sys.executable, on_path)
    raise ConfigError(f"{name} is not installed here; {program.installation}, and --environment {name}={program.example}.")


def _installed(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


def _given(name: str, program: Program, path: Path) -> Environment:
    found = path / program.example.removeprefix("DIR/") if path.is_dir() else path
    if not os.access(found, os.X_OK) or found.is_dir():
        kind = "interpreter" if program.package else "program"
        raise ConfigError(
            f"{found} is no {kind}; make it with {program.installation}, and --environment {name}={program.example}."
        )
    if program.binary and found.name.startswith(program.binary):
        return Environment(sys.executable, str(found.absolute()))
    if not program.package:
        raise ConfigError(f"{found} is not {program.binary}; {program.installation}, and --environment {name}={program.example}.")
    return Environment(str(found.absolute()))


def start(name: str, job: ProgramJob, where: Environment, timeout: float | None = None) -> dict[str, Any]:
    """Run a job of a program (a key of ``inside.INSIDE``) in its own process.

    Returns what ``inside.py`` wrote, with ``wall`` (seconds, process start included) and ``peak_rss`` (bytes, the process and its
    children). Raises RunError, a sentence and then the end of the log, when the program fails or takes longer than ``timeout``
    seconds.
    """
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "job.json").write_text(json.dumps(asdict(replace(job, binary=where.binary))))
    (work / "result.json").unlink(missing_ok=True)
    # before the process starts: the libraries read these while they load. daskreg's own path is not for other environments
    variables = {**dict.fromkeys(THREAD_VARIABLES, str(job.threads)), "PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    try:
        run = watched([where.python, str(inside.__file__), name, str(work)], work / "log.txt", variables, timeout)
        found: dict[str, Any] = json.loads((work / "result.json").read_text())
    except ProcessFailed as error:
        raise RunError(f"{error.sentence}\n{error}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"it left no result ({error}).") from error
    return {**found, "wall": run.seconds, "peak_rss": run.peak_rss}


def registration_seconds(found: Mapping[str, Any]) -> float:
    """Seconds of the process without resampling and writing of the field, which only the comparison needs."""
    phases: Mapping[str, float] = found["seconds"]
    return float(found["wall"]) - sum(v for k, v in phases.items() if k in UNTIMED)

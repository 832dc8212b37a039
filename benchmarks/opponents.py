"""The other registration programs, each behind one function, run in their own environment.

``python benchmarks/opponents.py install DIR`` makes that environment from ``opponents.txt``. The functions below start
``DIR/bin/python`` as a subprocess (``daskreg/workflows/programs``, which ``daskreg compare`` uses too), so wall time includes
process start, imports and reading, and nothing of theirs is loaded beside daskreg. Opponents are only run: FireANTs' licence
forbids copying its code, greedy's is the GPL.

Each returns a dict: ``seconds`` by phase, ``wall`` (process start included), ``peak_rss`` (bytes, the process and its
children), ``labels`` and ``moved`` (paths by phase: 'affine', 'deformable'), ``warp`` (total field as ITK reads it: mm, LPS,
components x, y, z, on the fixed grid), ``matrix`` (the linear stage, in the program's own format), ``settings`` and ``version``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

from daskreg.errors import RunError
from daskreg.workflows.programs.inside import ProgramJob as Job
from daskreg.workflows.programs.start import GREEDY_TUNED, Environment, start

HERE = Path(__file__).resolve().parent
DEFAULT_HOME = HERE.parent.parent / "opp" / "venv"  # overridden by --opponents-home


def greedy(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """PICSL greedy: affine NMI, then NCC 2x2x2, 100x50x20 iterations, smoothing 1.732 and 0.707 voxels."""
    return _start("greedy", job, home)


def greedy_tuned(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """The same with local correlation for the affine stage too, windows of 7 voxels, 100x100x50 iterations, less smoothing."""
    return _start("greedy", replace(job, extra={**job.extra, **GREEDY_TUNED}), home)


def ants_cc(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs by antspyx: ``type_of_transform="SyNCC"``, cross-correlation in windows of radius 4."""
    return _start("ants", replace(job, extra={**job.extra, "kind": "SyNCC"}), home)


def ants(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs by antspyx: ``type_of_transform="SyN"`` with its defaults, or "Rigid"/"Affine" where no deformable stage is asked."""
    return _start("ants", job, home)


def fireants(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """FireANTs on the CPU: moments, affine, ``GreedyRegistration`` with windowed CC, Adam; without its CUDA extension."""
    return _start("fireants", job, home)


def fireants_cuda(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """The same on a GPU: the wheel from PyPI, plain PyTorch, without its fused extension."""
    return {**_start("fireants", replace(job, device="cuda"), home), "device": "cuda"}


def niftyreg(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """NiftyReg's reg_aladin and reg_f3d with their defaults, built from its sources into ``home/bin``."""
    binary = home / "bin" / "reg_f3d"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is not there; build https://github.com/KCL-BMEIS/niftyreg with CMake, and copy it")
    return start("niftyreg", job, Environment(sys.executable, str(binary)))


def simpleitk(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """SimpleITK: a linear stage (``job.dof`` 6 or 12) by Mattes MI; it has no deformable stage here."""
    return _start("simpleitk", job, home)


def greedy_search(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """PICSL greedy, rigid by NMI from its random search: ``-search N any SHIFT``, N and SHIFT (mm) in ``job.extra["search"]``."""
    return _start("greedy", replace(job, dof=6, deformable=False), home)


def ants_search(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs, rigid by Mattes MI from ``antsAffineInitializer`` (antspyx has no antsAI) over full circles, in steps of
    ``job.extra["step"]`` degrees.
    """
    return _start("ants_search", replace(job, dof=6, deformable=False), home)


RUNNERS = {
    "greedy": greedy,
    "greedy_tuned": greedy_tuned,
    "greedy_search": greedy_search,
    "ants_search": ants_search,
    "ants": ants,
    "ants_cc": ants_cc,
    "fireants": fireants,
    "fireants_cuda": fireants_cuda,
    "niftyreg": niftyreg,
    "simpleitk": simpleitk,
}


def _start(name: str, job: Job, home: Path) -> dict[str, Any]:
    """Raises FileNotFoundError without the environment, RuntimeError with the end of the log when the program fails."""
    python = home / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; make it with: python {HERE / 'opponents.py'} install {home}")
    try:
        return start(name, job, Environment(str(python)))
    except RunError as error:
        raise RuntimeError(str(error)) from error


def install(home: Path) -> None:
    """Make the opponents' environment in ``home``: a few GB, mostly torch."""
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-r", HERE / "opponents.txt"], check=True)


def main(argv: list[str] | None = None) -> None:
    """``install DIR``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install", help="make the opponents' environment").add_argument("home", type=Path)
    install(parser.parse_args(argv).home)


if __name__ == "__main__":
    main(sys.argv[1:])

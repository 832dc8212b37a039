"""``daskreg demo``: a bundled real pair, from nothing to a report."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from daskreg.engine.report import Progress
from daskreg.errors import OutputError, OutputExists
from daskreg.workflows.register import register
from daskreg.workflows.report import report
from daskreg.workflows.result import Result


def demo_pair(millimetres: int = 2) -> tuple[str, str]:
    """Paths of the bundled fixed (MNI152 2009c) and moving (Colin27) heads, at 2 or 3 mm."""
    data = files("daskreg") / "data"
    return str(data / f"quickstart_mni2009c_T1_{millimetres}mm.nii.gz"), str(
        data / f"quickstart_colin27_T1_{millimetres}mm.nii.gz"
    )


def demo(
    out: str | Path = "daskreg_demo", *, overwrite: bool = False, progress: Callable[[Progress], None] | None = None
) -> tuple[Result, Path]:
    """Register the pair into ``out/run.zarr`` and write ``out/report.html``.

    Raises OutputExists when either is there and ``overwrite`` was not asked for.
    """
    out = Path(out)
    page = out / "report.html"
    if page.exists() and not overwrite:
        raise OutputExists(f"{page} exists already; choose another --out, or replace it with --overwrite.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error.strerror}; choose another --out.") from None
    result = register(*demo_pair(), "brain", output=out / "run.zarr", overwrite=overwrite, progress=progress)
    report(result.path, page, overwrite=overwrite)
    return result, page

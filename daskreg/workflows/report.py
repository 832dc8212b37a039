"""``daskreg report``: a finished run as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daskreg.arguments import checked_arguments
from daskreg.errors import ConfigError, OutputError
from daskreg.storage import RunStore, Volume, is_remote
from daskreg.storage.fs.atomic import atomic_output, require_distinct, require_writable
from daskreg.storage.fs.files import replace_text
from daskreg.storage.images import ImageSource
from daskreg.workflows.landmarks import Landmarks
from daskreg.workflows.result import Result


@checked_arguments()
def report(
    run: str | Path | RunStore | Result,
    output: str | Path,
    *,
    fixed_labels: ImageSource | Volume | None = None,
    moving_labels: ImageSource | Volume | None = None,
    landmarks: Landmarks | None = None,
    inverse: str | Path | None = None,
    overwrite: bool = False,
) -> Path | str:
    """Write the page about ``run`` (a path, a RunStore or the Result of ``register``) to ``output``; returns where it is.

    fixed_labels, moving_labels, landmarks: as for ``evaluate``; without them the page has no Dice and no distances.
    inverse: the inverse that ``daskreg invert`` wrote of this run; the page shows its certificate.
    Inputs are opened at their recorded addresses; the page says which are missing or others by now, and shows ``moved`` alone.

    Raises OutputExists, OutputError, OutOfSpace; NotFound, Unreadable and IncompleteRun for the run.
    """
    require_writable(str(output), overwrite)
    store = _store(run)
    require_distinct(output, store.path, fixed_labels, moving_labels, landmarks, inverse)
    if not str(output).lower().endswith((".html", ".htm")):
        raise OutputError(f"{output}: a report is a page of HTML; name it .html.")
    from daskreg.reporting.certificate import certificate
    from daskreg.reporting.page import render

    measured = _evaluated(store, fixed_labels, moving_labels, landmarks)
    text = render(store, measured, None if inverse is None else certificate(inverse, store.fixed_grid))
    with atomic_output(str(output), overwrite) as partial:
        replace_text(partial, text)
    return str(output) if is_remote(str(output)) else Path(output)


write_report = report  # its former name


def _store(run: str | Path | RunStore | Result) -> RunStore:
    path = run if isinstance(run, str | Path) else getattr(run, "path", None)
    if path is None:
        raise ConfigError(f"{run!r} is no run; give the address of a RUN.zarr, or what register returned.")
    return run if isinstance(run, RunStore) else RunStore.open(path)


def _evaluated(run: RunStore, fixed_labels: Any, moving_labels: Any, landmarks: Any) -> dict[str, Any] | None:
    if fixed_labels is None and moving_labels is None and landmarks is None:
        return None
    from daskreg.workflows.evaluate import evaluate  # compiles kernels: only when asked for

    return evaluate(run, fixed_labels=fixed_labels, moving_labels=moving_labels, landmarks=landmarks).as_dict()
